//! What culvert has logged, and what messages say in their heads.

use super::{client::Response, culvert::Culvert};

/// Waits for a line of the access log.
pub fn logged(culvert: &Culvert, line: &str) {
    let line = format!("LOG {line}\n");
    culvert.wait_until(&line, |culvert| culvert.log().contains(&line));
}

/// The values of a header, in order.
pub fn values<'r>(response: &'r Response, name: &str) -> Vec<&'r str> {
    let named = response.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value.as_str()).collect()
}

/// The values of a header in the head of a request, as the upstream mirrors it.
pub fn seen(response: &Response, name: &str) -> Vec<String> {
    let mark = format!("{name}: ");
    response.text().lines().filter_map(|line| line.strip_prefix(&mark).map(str::to_owned)).collect()
}
