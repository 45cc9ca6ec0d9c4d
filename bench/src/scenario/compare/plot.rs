//! Charts as inline SVG: bars with whiskers, latency curves. They take their colours from the page's style.

use std::fmt::Write;

use super::html::escape;
use crate::load::CURVE;
use crate::report::Summary;

const WIDTH: f64 = 760.0;
const LABEL_WIDTH: f64 = 180.0;
const VALUE_WIDTH: f64 = 90.0;
const BAR_HEIGHT: f64 = 18.0;
const BAR_STEP: f64 = 26.0;

/// Height of the area of curves.
const CURVES_HEIGHT: f64 = 260.0;
const MARGIN: f64 = 48.0;

/// Where the largest sample stands, beyond the 99.9th percentile.
const MAX_AT: f64 = 3.4;

/// A bar of a chart.
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) summary: Summary,
    /// Digits of its value.
    pub(super) digits: usize,
    /// Drawn in the colour of what the page is about.
    pub(super) is_own: bool,
}

/// A line of a chart.
pub(super) struct Curve {
    pub(super) label: String,
    /// Latency in microseconds at each of [`CURVE`].
    pub(super) points: Vec<f64>,
    /// Which of the page's colours.
    pub(super) colour: usize,
}

/// Horizontal bars from zero, with their intervals as whiskers; `title` tells those who cannot see it what it is.
pub(super) fn bars(title: &str, bars: &[Bar]) -> String {
    let most = bars.iter().map(|bar| bar.summary.interval[1].max(bar.summary.median)).fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / most;
    let height = BAR_STEP * bars.len() as f64 + 4.0;
    let mut svg = open(title, height);
    for (index, bar) in bars.iter().enumerate() {
        let y = BAR_STEP * index as f64 + 4.0;
        let middle = y + BAR_HEIGHT / 2.0;
        let [low, high] = bar.summary.interval.map(|value| LABEL_WIDTH + value * scale);
        let width = bar.summary.median * scale;
        let class = if bar.is_own { "bar own" } else { "bar" };
        text(&mut svg, LABEL_WIDTH - 8.0, middle + 4.0, "end", &bar.label);
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{LABEL_WIDTH}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR_HEIGHT}\"/>\
             <path class=\"whisker\" d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v8M{high:.1} {:.1}v8\"/>",
            middle - 4.0,
            middle - 4.0,
        );
        let value = format!("{:.*}", bar.digits, bar.summary.median);
        text(&mut svg, high.max(LABEL_WIDTH + width) + 6.0, middle + 4.0, "start", &value);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Latency over the share of requests that were faster, both axes logarithmic: each nine is as wide as the last.
pub(super) fn curves(title: &str, curves: &[Curve]) -> String {
    let values = || curves.iter().flat_map(|curve| &curve.points).copied().filter(|value| *value > 0.0);
    let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    if most <= 0.0 {
        return String::new();
    }
    let (bottom, top) = (least.log10().floor(), most.log10().ceil().max(least.log10().floor() + 1.0));
    let x = |share: f64| MARGIN + nines(share) / MAX_AT * (WIDTH - MARGIN - 12.0);
    let y = |value: f64| 12.0 + (top - value.log10()) / (top - bottom) * CURVES_HEIGHT;
    let legend_rows = curves.len().div_ceil(4) as f64;
    let mut svg = open(title, CURVES_HEIGHT + 48.0 + legend_rows * 20.0);
    for decade in bottom as i32..=top as i32 {
        let at = y(10_f64.powi(decade));
        let _ = write!(svg, "<path class=\"grid\" d=\"M{MARGIN} {at:.1}H{:.1}\"/>", WIDTH - 12.0);
        text(&mut svg, MARGIN - 6.0, at + 4.0, "end", &duration(decade));
    }
    for (share, name) in
        [(0.0, "min"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (1.0, "max")]
    {
        let at = x(share);
        let _ = write!(svg, "<path class=\"grid\" d=\"M{at:.1} 12V{:.1}\"/>", 12.0 + CURVES_HEIGHT);
        text(&mut svg, at, CURVES_HEIGHT + 30.0, if share == 1.0 { "end" } else { "middle" }, name);
    }
    for (index, curve) in curves.iter().enumerate() {
        let points: Vec<String> = CURVE
            .iter()
            .zip(&curve.points)
            .filter(|(_, value)| **value > 0.0)
            .map(|(share, value)| format!("{:.1},{:.1}", x(*share), y(*value)))
            .collect();
        let colour = curve.colour;
        let _ = write!(svg, "<polyline class=\"line c{colour}\" points=\"{}\"/>", points.join(" "));
        let (left, row) =
            (MARGIN + (index % 4) as f64 * 178.0, CURVES_HEIGHT + 52.0 + (index / 4) as f64 * 20.0);
        let _ = write!(svg, "<path class=\"line c{colour}\" d=\"M{left:.1} {:.1}h18\"/>", row - 4.0);
        text(&mut svg, left + 24.0, row, "start", &curve.label);
    }
    svg.push_str("</svg>\n");
    svg
}

/// How many nines a share has: 0.99 has two.
fn nines(share: f64) -> f64 {
    if share >= 1.0 { MAX_AT } else { -(1.0 - share).log10() }
}

/// A power of ten of microseconds.
fn duration(decade: i32) -> String {
    match decade {
        ..0 => format!("{} ns", 10_f64.powi(decade + 3)),
        0..3 => format!("{} us", 10_f64.powi(decade)),
        3..6 => format!("{} ms", 10_f64.powi(decade - 3)),
        6.. => format!("{} s", 10_f64.powi(decade - 6)),
    }
}

fn open(title: &str, height: f64) -> String {
    format!("<svg role=\"img\" viewBox=\"0 0 {WIDTH} {height:.0}\" aria-label=\"{}\">\n", escape(title))
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let bar = |label: &str, value: f64| Bar {
            label: label.to_owned(),
            summary: Summary::of(&[value]).expect("summary"),
            digits: 1,
            is_own: label == "own",
        };
        let svg = bars("CPU", &[bar("own", 10.0), bar("a & b", 40.0)]);
        let room = WIDTH - LABEL_WIDTH - VALUE_WIDTH;
        assert!(svg.contains(&format!("width=\"{room:.1}\"")), "{svg}");
        assert!(svg.contains(&format!("class=\"bar own\" x=\"180\" y=\"4.0\" width=\"{:.1}\"", room / 4.0)));
        assert!(svg.contains("a &amp; b") && svg.contains(">40.0</text>"));
        assert_eq!(bars("nothing", &[]), "");
    }

    #[test]
    fn curves_rise_to_the_right() {
        let points: Vec<f64> = (0..CURVE.len()).map(|index| 50.0 * 1.5_f64.powi(index as i32)).collect();
        let svg = curves("latency", &[Curve { label: "x".to_owned(), points, colour: 1 }]);
        let line = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("line");
        let pairs: Vec<(f64, f64)> = line
            .split(' ')
            .filter_map(|pair| pair.split_once(','))
            .map(|(x, y)| (x.parse().expect("x"), y.parse().expect("y")))
            .collect();
        assert_eq!(pairs.len(), CURVE.len());
        assert!(pairs.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 > two[1].1), "{pairs:?}");
        assert!(svg.contains("10 us") && svg.contains("99.9 %"));
        assert_eq!(curves("nothing", &[]), "");
    }

    #[test]
    fn decades_have_names() {
        assert_eq!([-1, 0, 2, 3, 6].map(duration), ["100 ns", "1 us", "100 us", "1 ms", "1 s"]);
    }
}
