//! What the levels of a route configuration say about HTTP filters (`typed_per_filter_config`), compiled: a filter has a
//! number in the table, under which every level has what it says.

use culvert_model::{
    Action, ClusterSpecifier, FilterOverrides, Route, RouteConfiguration, VirtualHost, WeightedCluster,
};

use crate::filter::Settings;

/// What a level says about a filter.
#[derive(Debug)]
pub struct Override {
    /// Whether it is off.
    pub disabled: bool,
    /// Settings that replace, or come on top of, the filter's own.
    pub settings: Option<Settings>,
}

/// By the filter's number; shorter where nothing more is said, empty where nothing is.
type Level = Vec<Option<Override>>;

/// All of a table.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    /// In order: the number is the place.
    names: Vec<String>,
    config: Level,
    /// By index of the virtual host; empty when none says anything.
    hosts: Vec<HostLevels>,
}

#[derive(Debug, Default)]
struct HostLevels {
    own: Level,
    /// By index of the route; empty when none says anything.
    routes: Vec<RouteLevels>,
}

#[derive(Debug, Default)]
struct RouteLevels {
    own: Level,
    /// By index of the weighted cluster; empty when none says anything.
    clusters: Vec<Level>,
}

/// Which levels apply to a request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Place {
    pub(super) host: u32,
    pub(super) route: u32,
    pub(super) cluster: Option<u32>,
}

impl Place {
    /// With the weighted cluster that was chosen among those of the route.
    #[must_use]
    pub fn with_cluster(self, route: &Route, chosen: Option<&WeightedCluster>) -> Self {
        let cluster = match (&route.action, chosen) {
            (Action::Forward(action), Some(chosen)) => match &action.cluster {
                ClusterSpecifier::Weighted(weighted) => {
                    weighted.clusters.iter().position(|cluster| std::ptr::eq(cluster, chosen))
                }
                ClusterSpecifier::Header(_) | ClusterSpecifier::Name(_) => None,
            },
            _ => None,
        };
        Self { cluster: cluster.map(|index| index as u32), ..self }
    }
}

impl Overrides {
    pub(super) fn compile(config: &RouteConfiguration) -> Self {
        let mut names: Vec<&str> = Vec::new();
        each(config, &mut |level| names.extend(level.iter().map(|(name, _)| name.as_str())));
        if names.is_empty() {
            return Self::default();
        }
        names.sort_unstable();
        names.dedup();
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let hosts = config.virtual_hosts.iter().map(|host| HostLevels {
            own: level(&names, &host.filters),
            routes: unless_empty(
                host.routes.iter().map(|route| RouteLevels {
                    own: level(&names, &route.filters),
                    clusters: unless_empty(
                        clusters(route).iter().map(|it| level(&names, &it.filters)),
                        Vec::is_empty,
                    ),
                }),
                |route| route.own.is_empty() && route.clusters.is_empty(),
            ),
        });
        let hosts = unless_empty(hosts, |host| host.own.is_empty() && host.routes.is_empty());
        Self { config: level(&names, &config.filters), hosts, names }
    }

    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.names.binary_search_by(|known| known.as_str().cmp(name)).ok().map(|index| index as u32)
    }

    /// The most specific first.
    pub(super) fn levels(&self, number: u32, place: Place) -> impl DoubleEndedIterator<Item = &Override> {
        let host = self.hosts.get(place.host as usize);
        let route = host.and_then(|host| host.routes.get(place.route as usize));
        let cluster = route.zip(place.cluster).and_then(|(route, index)| route.clusters.get(index as usize));
        let levels = [cluster, route.map(|it| &it.own), host.map(|it| &it.own), Some(&self.config)];
        levels.into_iter().flatten().filter_map(move |level| level.get(number as usize)?.as_ref())
    }
}

/// The values, or none when there is nothing in any of them.
fn unless_empty<T>(values: impl Iterator<Item = T>, is_empty: impl Fn(&T) -> bool) -> Vec<T> {
    let values: Vec<T> = values.collect();
    if values.iter().all(is_empty) { Vec::new() } else { values }
}

fn level(names: &[String], overrides: &FilterOverrides) -> Level {
    let find = |name: &String| overrides.iter().find(|(known, _)| known == name);
    let mut level: Level = match overrides.is_empty() {
        true => Vec::new(),
        false => names
            .iter()
            .map(|name| {
                let (_, it) = find(name)?;
                Some(Override {
                    disabled: it.disabled,
                    settings: it.settings.as_ref().map(Settings::compile),
                })
            })
            .collect(),
    };
    level.shrink_to_fit();
    level
}

fn clusters(route: &Route) -> &[WeightedCluster] {
    match &route.action {
        Action::Forward(action) => match &action.cluster {
            ClusterSpecifier::Weighted(weighted) => &weighted.clusters,
            ClusterSpecifier::Header(_) | ClusterSpecifier::Name(_) => &[],
        },
        Action::Direct(_) | Action::Redirect(_) => &[],
    }
}

fn each<'c>(config: &'c RouteConfiguration, see: &mut impl FnMut(&'c FilterOverrides)) {
    see(&config.filters);
    for VirtualHost { filters, routes, .. } in &config.virtual_hosts {
        see(filters);
        for route in routes {
            see(&route.filters);
            clusters(route).iter().for_each(|cluster| see(&cluster.filters));
        }
    }
}
