//! Which configured listeners a pod's connections enter.

use std::sync::Arc;

use culvert_model::TrafficDirection;

use crate::capture::{CaptureError, Direction, PodSpec, Target};

/// The configured listeners that a pod's connections enter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Targets {
    pub(super) outbound: Option<Arc<str>>,
    pub(super) inbound: Option<Arc<str>>,
}

/// What a pod's choice of listeners means among those configured.
pub(super) fn resolve(
    listeners: &[(Arc<str>, TrafficDirection)],
    spec: &PodSpec,
) -> Result<Targets, CaptureError> {
    let find = |direction: Direction, target: &Target| {
        let pod = || spec.name.clone();
        match target {
            Target::Off => Ok(None),
            Target::Listener(name) => match listeners.iter().find(|(known, _)| **known == **name) {
                Some((known, _)) => Ok(Some(Arc::clone(known))),
                None => Err(CaptureError::UnknownListener { pod: pod(), direction, listener: name.clone() }),
            },
            Target::Default => {
                let mut fitting = listeners.iter().filter(|(_, other)| *other == direction.into());
                match (fitting.next(), fitting.next()) {
                    (None, _) => Err(CaptureError::NoListener { pod: pod(), direction }),
                    (Some((only, _)), None) => Ok(Some(Arc::clone(only))),
                    (Some((first, _)), Some((second, _))) => {
                        let rest = fitting.map(|(name, _)| name);
                        let listeners =
                            [first, second].into_iter().chain(rest).map(ToString::to_string).collect();
                        Err(CaptureError::AmbiguousListener { pod: pod(), direction, listeners })
                    }
                }
            }
        }
    };
    let outbound = find(Direction::Outbound, &spec.outbound)?;
    Ok(Targets { outbound, inbound: find(Direction::Inbound, &spec.inbound)? })
}

impl Targets {
    pub(super) fn of(&self, direction: Direction) -> Option<&Arc<str>> {
        match direction {
            Direction::Inbound => self.inbound.as_ref(),
            Direction::Outbound => self.outbound.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listeners(of: &[(&str, TrafficDirection)]) -> Vec<(Arc<str>, TrafficDirection)> {
        of.iter().map(|(name, direction)| ((*name).into(), *direction)).collect()
    }

    fn message(of: &[(&str, TrafficDirection)], spec: &PodSpec) -> String {
        resolve(&listeners(of), spec).unwrap_err().to_string()
    }

    #[test]
    fn the_only_listener_of_a_direction_is_the_default() {
        use TrafficDirection::{Inbound, Outbound, Unspecified};
        let all = listeners(&[("admin", Unspecified), ("out", Outbound), ("in", Inbound)]);
        let mut spec = PodSpec::new("a", "/x");
        let targets = resolve(&all, &spec).unwrap();
        assert_eq!((targets.outbound.as_deref(), targets.inbound.as_deref()), (Some("out"), Some("in")));
        // A name is taken at its word, whatever direction its listener has.
        spec.outbound = Target::Listener("admin".into());
        spec.inbound = Target::Off;
        let targets = resolve(&all, &spec).unwrap();
        assert_eq!((targets.outbound.as_deref(), targets.inbound.as_deref()), (Some("admin"), None));
    }

    #[test]
    fn none_several_and_unknown_are_told_apart() {
        use TrafficDirection::{Inbound, Outbound};
        let mut spec = PodSpec::new("a", "/x");
        assert_eq!(
            message(&[("in", Inbound)], &spec),
            "pod a: outbound: no listener has traffic_direction OUTBOUND; name one, or write `off`"
        );
        assert_eq!(
            message(&[("o", Outbound), ("x", Inbound), ("y", Inbound)], &spec),
            "pod a: inbound: several listeners have traffic_direction INBOUND: x, y; name one"
        );
        spec.outbound = Target::Listener("gone".into());
        assert_eq!(message(&[("in", Inbound)], &spec), "pod a: outbound: no listener is called \"gone\"");
    }
}
