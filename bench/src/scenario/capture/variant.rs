//! The rows of the comparison.

use super::Mode;

/// A way from client to server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// Through culvert, which takes the connection over by `mode`, with unrelated iptables rules in the pod.
    Captured { mode: Mode, rules: u32 },
    /// Straight to the server, a second time.
    Control,
    /// Straight to the server.
    NoMesh,
}

impl Variant {
    /// All rows, in the order in which they are shown; those without mesh first.
    pub(super) fn all(modes: &[Mode], rules: u32) -> Vec<Self> {
        let mut variants = vec![Self::NoMesh, Self::Control];
        for rules in if rules == 0 { vec![0] } else { vec![0, rules] } {
            variants.extend(modes.iter().map(|&mode| Self::Captured { mode, rules }));
        }
        variants
    }

    /// What it is called in tables.
    pub(super) fn label(self) -> String {
        match self {
            Self::Captured { mode, rules: 0 } => mode.name().to_owned(),
            Self::Captured { mode, rules } => format!("{}, {rules} rules", mode.name()),
            Self::Control => "no mesh (control)".to_owned(),
            Self::NoMesh => "no mesh".to_owned(),
        }
    }

    /// The name of its pod.
    pub(super) fn pod_name(self) -> String {
        match self {
            Self::Captured { mode, rules: 0 } => mode.name().to_owned(),
            Self::Captured { mode, rules } => format!("{}-r{rules}", mode.name()),
            Self::Control => "control".to_owned(),
            Self::NoMesh => "plain".to_owned(),
        }
    }

    pub(super) fn mode(self) -> Option<Mode> {
        match self {
            Self::Captured { mode, .. } => Some(mode),
            Self::Control | Self::NoMesh => None,
        }
    }

    pub(super) fn rules(self) -> u32 {
        match self {
            Self::Captured { rules, .. } => rules,
            Self::Control | Self::NoMesh => 0,
        }
    }
}
