//! Which routes of a virtual host can match a path, in order, without looking at the others.

use std::{collections::HashMap, sync::Arc};

use culvert_model::{FullRegex, PathMatch, Route, RouteMatch};
use regex_syntax::hir::literal::{ExtractKind, Extractor};
use smallvec::SmallVec;

use crate::{
    head::split_query,
    route::{RequestView, matcher, trie::Trie},
};

/// Longer paths are put into lower case on the heap.
const STACK_PATH_BYTES: usize = 256;

/// The routes of one virtual host, arranged by path.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    as_is: Paths,
    /// Paths and keys in lower case.
    ignoring_case: Paths,
    /// Routes for CONNECT, ascending.
    connect: Vec<u32>,
}

/// Routes by path. All lists are ascending.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<Box<[u8]>, Vec<u32>>,
    /// Prefixes, separated prefixes, and literal beginnings of regular expressions.
    prefixes: Trie,
    is_empty: bool,
}

/// The lists a path leads to; most paths lead to few.
type Lists<'a> = SmallVec<[&'a [u32]; 16]>;

impl Candidates {
    pub(super) fn compile(routes: &[Arc<Route>]) -> Self {
        let mut candidates = Self::default();
        candidates.as_is.is_empty = true;
        candidates.ignoring_case.is_empty = true;
        for (index, route) in (0..).zip(routes) {
            match &route.matcher.path {
                PathMatch::Connect => candidates.connect.push(index),
                PathMatch::Exact { value, ignore_case } => {
                    candidates
                        .paths(*ignore_case)
                        .exact
                        .entry(value.as_bytes().into())
                        .or_default()
                        .push(index);
                }
                PathMatch::Prefix { value, ignore_case }
                | PathMatch::SeparatedPrefix { value, ignore_case } => {
                    candidates.paths(*ignore_case).prefixes.insert(value.as_bytes(), index);
                }
                PathMatch::Regex(regex) => {
                    candidates.paths(false).prefixes.insert(&literal_prefix(regex), index);
                }
            }
        }
        candidates
    }

    /// The index of the first route that matches.
    pub(super) fn first_match(
        &self,
        routes: &[Arc<Route>],
        request: &RequestView<'_>,
        random: u64,
    ) -> Option<usize> {
        let path = split_query(request.path).0;
        let mut lists = Lists::new();
        if request.method == b"CONNECT" {
            lists.push(&self.connect);
        } else {
            self.as_is.collect(path, &mut lists);
            if !self.ignoring_case.is_empty {
                let mut lower = SmallVec::<[u8; STACK_PATH_BYTES]>::from_slice(path);
                lower.make_ascii_lowercase();
                self.ignoring_case.collect(&lower, &mut lists);
            }
        }
        while let Some(index) = pop_lowest(&mut lists) {
            let matcher = &routes[index].matcher;
            if path_matches(&matcher.path, path) && matcher::conditions_match(matcher, request, random) {
                return Some(index);
            }
        }
        None
    }

    fn paths(&mut self, ignore_case: bool) -> &mut Paths {
        let paths = if ignore_case { &mut self.ignoring_case } else { &mut self.as_is };
        paths.is_empty = false;
        paths
    }
}

impl Paths {
    fn collect<'a>(&'a self, path: &[u8], lists: &mut Lists<'a>) {
        if self.is_empty {
            return;
        }
        lists.extend(self.exact.get(path).map(Vec::as_slice));
        self.prefixes.for_each_prefix(path, |values| lists.push(values));
    }
}

/// Takes the lowest number off the lists.
fn pop_lowest(lists: &mut Lists<'_>) -> Option<usize> {
    let list = lists.iter_mut().filter(|list| !list.is_empty()).min_by_key(|list| list[0])?;
    let (first, rest) = list.split_first()?;
    *list = rest;
    usize::try_from(*first).ok()
}

/// What the lists leave open: they were found by equal or by leading bytes.
fn path_matches(matcher: &PathMatch, path: &[u8]) -> bool {
    match matcher {
        PathMatch::Connect | PathMatch::Exact { .. } | PathMatch::Prefix { .. } => true,
        PathMatch::SeparatedPrefix { value, .. } => matches!(path.get(value.len()), None | Some(b'/')),
        PathMatch::Regex(regex) => regex.is_match(path),
    }
}

/// Whether a request is one that `matcher` is for.
pub fn request_matches(matcher: &RouteMatch, request: &RequestView<'_>, random: u64) -> bool {
    let path = split_query(request.path).0;
    let starts = |value: &str, ignore_case: bool| {
        let head = path.get(..value.len());
        head.is_some_and(|head| match ignore_case {
            true => head.eq_ignore_ascii_case(value.as_bytes()),
            false => head == value.as_bytes(),
        })
    };
    let connect = request.method == b"CONNECT";
    let fits = match &matcher.path {
        PathMatch::Connect => connect,
        PathMatch::Exact { value, ignore_case } => path.len() == value.len() && starts(value, *ignore_case),
        PathMatch::Prefix { value, ignore_case } | PathMatch::SeparatedPrefix { value, ignore_case } => {
            starts(value, *ignore_case)
        }
        PathMatch::Regex(_) => true,
    };
    fits && connect == matches!(matcher.path, PathMatch::Connect)
        && path_matches(&matcher.path, path)
        && matcher::conditions_match(matcher, request, random)
}

/// Bytes that everything the expression matches starts with.
fn literal_prefix(regex: &FullRegex) -> Vec<u8> {
    let anchored = format!("^(?s:{})$", regex.as_str());
    let parsed = regex_syntax::ParserBuilder::new().utf8(false).build().parse(&anchored);
    let Ok(expression) = parsed else { return Vec::new() };
    let literals = Extractor::new().kind(ExtractKind::Prefix).extract(&expression);
    literals.longest_common_prefix().map(<[u8]>::to_vec).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_beginnings_of_expressions() {
        for (source, expected) in [
            ("/api/v[0-9]+/.*", "/api/v"),
            ("/a(b|c)d", "/a"),
            ("/a(bc|bd)", "/ab"),
            (".*", ""),
            ("(?i)/a", "/"),
            ("/a?", "/"),
            ("/a{2}b*", "/aa"),
            ("[/]x", "/x"),
            ("/\\d+", "/"),
            ("/a|/ab", "/a"),
            ("", ""),
            ("a|", ""),
            ("/x\\.y", "/x.y"),
            ("(?-u)/\\xff", "/"),
        ] {
            let regex = FullRegex::new(source).unwrap();
            let prefix = literal_prefix(&regex);
            assert!(
                prefix.starts_with(expected.as_bytes()),
                "{source}: {:?}",
                String::from_utf8_lossy(&prefix)
            );
        }
    }

    #[test]
    fn numbers_come_in_order() {
        let mut lists: Lists<'_> = [&[1, 4][..], &[], &[0, 2, 9], &[3]].into_iter().collect();
        let order: Vec<_> = std::iter::from_fn(|| pop_lowest(&mut lists)).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 9]);
    }
}
