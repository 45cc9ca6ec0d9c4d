//! How requests are spread over priorities: Envoy's `LoadBalancerBase::recalculatePerPriorityState`.

use culvert_model::Health;

/// Number, or weight, of endpoints of one priority; at least one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Level {
    pub(super) priority: u32,
    pub(super) total: u64,
    pub(super) healthy: u64,
    pub(super) degraded: u64,
}

/// How many of the requests go to which endpoints.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Share {
    pub(super) priority: u32,
    /// `None`: all endpoints of the priority, whatever their health.
    pub(super) health: Option<Health>,
    /// All shares together make 100.
    pub(super) percent: u8,
}

/// The decision.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) shares: Vec<Share>,
    /// Whether health is disregarded at a priority.
    pub(super) panics: bool,
}

/// Spreads requests over the levels, which are in order of priority: healthy endpoints of each level as far as they
/// reach, then degraded ones, then whatever there is. A level is taken to have enough capacity while `overprovisioning`
/// percent of its healthy share are above 100. With less than `panic` percent available its health is disregarded:
/// better a few failures than an overload.
pub(super) fn plan(levels: &[Level], overprovisioning: u32, panic: u32) -> Plan {
    let available = available(levels, overprovisioning);
    let reach = reach(&available);
    if levels.is_empty() || reach == 0 && panic == 0 {
        return Plan::default();
    }
    let panicking = panicking(reach, panic);
    if levels.iter().all(&panicking) {
        return by_size(levels);
    }
    spread(levels, &available, panicking)
}

/// As [`plan`], without the levels of these priorities: Envoy's `PreviousPrioritiesRetryPriority`. Which levels panic does
/// not depend on that. `None` when nothing is available at the others, or no priority is left out.
pub(super) fn plan_without(
    levels: &[Level],
    (overprovisioning, panic): (u32, u32),
    without: &[u32],
) -> Option<Plan> {
    if without.is_empty() {
        return None;
    }
    let mut available = available(levels, overprovisioning);
    let panicking = panicking(reach(&available), panic);
    for (level, available) in levels.iter().zip(&mut available) {
        if without.contains(&level.priority) {
            *available = [0; 2];
        }
    }
    (reach(&available) > 0).then(|| spread(levels, &available, panicking))
}

/// How many percent of the requests the healthy and the degraded endpoints of each level could take.
fn available(levels: &[Level], overprovisioning: u32) -> Vec<[u64; 2]> {
    let available = |level: &Level| {
        [level.healthy, level.degraded]
            .map(|count| percent(u64::from(overprovisioning).saturating_mul(count), level.total))
    };
    levels.iter().map(available).collect()
}

/// How many percent all of them can take.
fn reach(available: &[[u64; 2]]) -> u64 {
    available.iter().flatten().sum::<u64>().min(100)
}

/// Whether the health of a level is disregarded.
fn panicking(reach: u64, panic: u32) -> impl Fn(&Level) -> bool {
    move |level| reach < 100 && 100 * (level.healthy + level.degraded) / level.total < u64::from(panic)
}

/// Spreads requests over what is `available`, which is not nothing.
fn spread(levels: &[Level], available: &[[u64; 2]], panicking: impl Fn(&Level) -> bool) -> Plan {
    let reach = reach(available);
    let mut left = 100;
    let mut percents = vec![[0; 2]; levels.len()];
    for health in 0..2 {
        for (level, available) in available.iter().enumerate() {
            percents[level][health] = left.min(available[health] * 100 / reach);
            left -= percents[level][health];
        }
    }
    // What rounding left goes to the first healthy share, else to the first.
    let first =
        |health: usize| percents.iter().position(|percent| percent[health] > 0).map(|level| (level, health));
    if let Some((level, health)) = first(0).or_else(|| first(1)) {
        percents[level][health] += left;
    }
    let mut plan = Plan::default();
    // A hash leads through the healthy ones of all levels first.
    for (level, [healthy, degraded]) in levels.iter().zip(&percents) {
        if panicking(level) {
            plan.panics |= healthy + degraded > 0;
            plan.shares.push(share(level, None, healthy + degraded));
        } else {
            plan.shares.push(share(level, Some(Health::Healthy), *healthy));
        }
    }
    for (level, [_, degraded]) in levels.iter().zip(&percents).filter(|(level, _)| !panicking(level)) {
        plan.shares.push(share(level, Some(Health::Degraded), *degraded));
    }
    plan
}

/// All levels panic: requests are spread by the number of endpoints.
fn by_size(levels: &[Level]) -> Plan {
    let total: u64 = levels.iter().map(|level| level.total).sum();
    let mut shares: Vec<Share> =
        levels.iter().map(|level| share(level, None, 100 * level.total / total)).collect();
    let given: u8 = shares.iter().map(|share| share.percent).sum();
    if let Some(first) = shares.iter_mut().find(|share| share.percent > 0) {
        first.percent += 100 - given;
    }
    Plan { shares, panics: true }
}

/// Percent of `total`, at most 100.
fn percent(part: u64, total: u64) -> u64 {
    (part / total).min(100)
}

fn share(level: &Level, health: Option<Health>, percent: u64) -> Share {
    Share { priority: level.priority, health, percent: u8::try_from(percent).unwrap_or(100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(priority: u32, total: u64, healthy: u64, degraded: u64) -> Level {
        Level { priority, total, healthy, degraded }
    }

    /// Percent to (healthy, degraded, all) of each level, in order.
    #[track_caller]
    fn check(levels: &[Level], expected: &[[u8; 3]], panics: bool) {
        let plan = plan(levels, 140, 50);
        let column = |health| match health {
            Some(Health::Healthy) => 0,
            Some(Health::Degraded) => 1,
            _ => 2,
        };
        let mut found = vec![[0; 3]; levels.len()];
        for share in &plan.shares {
            let at = levels.iter().position(|level| level.priority == share.priority).unwrap();
            found[at][column(share.health)] += share.percent;
        }
        assert_eq!(found, expected, "{levels:?}");
        assert_eq!(plan.panics, panics, "{levels:?}");
        let sum: u32 = plan.shares.iter().map(|share| u32::from(share.percent)).sum();
        assert_eq!(sum, if levels.is_empty() { 0 } else { 100 }, "{levels:?}");
    }

    /// The tables of Envoy's documentation of priority levels, degraded endpoints and panic thresholds.
    #[test]
    fn documented_tables() {
        for (healthy, expected) in [(100, 100), (72, 100), (71, 99), (50, 70), (25, 35), (0, 0)] {
            check(
                &[level(0, 100, healthy, 0), level(1, 100, 100, 0)],
                &[[expected, 0, 0], [100 - expected, 0, 0]],
                false,
            );
        }
        // P0 25 %, P1 25 %, P2 80 %: 35 %, 35 %, 30 %.
        let three = [level(0, 100, 25, 0), level(1, 100, 25, 0), level(2, 100, 80, 0)];
        check(&three, &[[35, 0, 0], [35, 0, 0], [30, 0, 0]], false);
        // Healthy, degraded of P0 and P1.
        check(&[level(0, 100, 100, 0), level(1, 100, 100, 0)], &[[100, 0, 0], [0, 0, 0]], false);
        check(&[level(0, 100, 0, 100), level(1, 100, 71, 0)], &[[0, 1, 0], [99, 0, 0]], false);
        check(&[level(0, 100, 25, 65), level(1, 100, 28, 0)], &[[35, 26, 0], [39, 0, 0]], false);
    }

    #[test]
    fn panic() {
        check(&[level(0, 10, 5, 0)], &[[100, 0, 0]], false);
        check(&[level(0, 10, 4, 0)], &[[0, 0, 100]], true);
        check(&[level(0, 10, 0, 0)], &[[0, 0, 100]], true);
        check(&[level(0, 10, 2, 3)], &[[40, 60, 0]], false);
        // Enough in all: nobody panics, however bad a single level is.
        check(&[level(0, 100, 20, 0), level(1, 100, 60, 0)], &[[28, 0, 0], [72, 0, 0]], false);
        // Not enough in all, but not bad everywhere: the documented row 5 %, 65 %.
        check(&[level(0, 100, 5, 0), level(1, 100, 65, 0)], &[[0, 0, 8], [92, 0, 0]], true);
        // Bad everywhere: by size.
        check(&[level(0, 30, 1, 0), level(1, 10, 1, 0)], &[[0, 0, 75], [0, 0, 25]], true);
        check(&[level(0, 10, 0, 0), level(1, 10, 0, 0)], &[[0, 0, 50], [0, 0, 50]], true);
        check(&[], &[], false);
    }

    /// Percent to each level when these priorities are left out; `None` where nothing else is available.
    #[track_caller]
    fn check_without(levels: &[Level], without: &[u32], expected: Option<&[u8]>) {
        let plan = plan_without(levels, (140, 50), without);
        let percents = plan.map(|plan| {
            let of = |level: &Level| {
                let own = plan.shares.iter().filter(|share| share.priority == level.priority);
                own.map(|share| share.percent).sum()
            };
            levels.iter().map(of).collect::<Vec<u8>>()
        });
        assert_eq!(percents.as_deref(), expected, "{levels:?} without {without:?}");
    }

    #[test]
    fn priorities_are_left_out() {
        let three = [level(0, 10, 10, 0), level(1, 10, 10, 0), level(4, 10, 10, 0)];
        check_without(&three, &[], None);
        check_without(&three, &[0], Some(&[0, 100, 0]));
        check_without(&three, &[0, 1], Some(&[0, 0, 100]));
        check_without(&three, &[1], Some(&[100, 0, 0]));
        check_without(&three, &[7], Some(&[100, 0, 0]));
        check_without(&three, &[0, 1, 4], None);
        // What is left takes all there is: 28 % and 70 % become 28 of 98.
        let weak = [level(0, 10, 10, 0), level(1, 10, 2, 0), level(2, 10, 5, 0)];
        check_without(&weak, &[0], Some(&[0, 29, 71]));
        check_without(&[level(0, 10, 10, 0), level(1, 10, 0, 0)], &[0], None);
        check_without(&[level(0, 10, 10, 0), level(1, 10, 0, 5)], &[0], Some(&[0, 100]));
    }

    #[test]
    fn rounding_goes_to_the_healthy() {
        // 70 % degraded and 28 % healthy of 98 %: 71, 28, and what is missing goes to the healthy.
        check(&[level(0, 10, 0, 5), level(1, 10, 2, 0)], &[[0, 71, 0], [0, 0, 29]], true);
    }

    #[test]
    fn rounding_loses_nothing() {
        for total in 1..20 {
            for healthy in 0..=total {
                for degraded in 0..=total - healthy {
                    for other in 0..=3 {
                        let levels = [level(0, total, healthy, degraded), level(3, 3, other, 0)];
                        let sum: u32 =
                            plan(&levels, 140, 50).shares.iter().map(|share| u32::from(share.percent)).sum();
                        assert_eq!(sum, 100, "{levels:?}");
                    }
                }
            }
        }
    }
}
