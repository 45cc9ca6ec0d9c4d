//! Slow start: an endpoint that has just become healthy gets less at first.

use std::time::Duration;

use culvert_model::SlowStart;

/// Less would be nothing to what chooses by it.
const LEAST: f64 = 0.001;

/// The part of its weight that an endpoint has which became healthy so long ago: above 0, at most 1.
#[must_use]
pub fn warmth(config: &SlowStart, age: Duration) -> f64 {
    if age >= config.window {
        return 1.0;
    }
    let passed = age.as_secs_f64().max(0.001) / config.window.as_secs_f64();
    passed.powf(1.0 / config.aggression).max(config.min_weight).clamp(LEAST, 1.0)
}
