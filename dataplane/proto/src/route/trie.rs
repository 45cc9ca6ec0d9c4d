//! A radix tree from path prefixes to routes.

/// Maps keys to lists of numbers and finds all keys that a path starts with.
#[derive(Debug)]
pub(super) struct Trie {
    /// The root, with an empty label, is at 0.
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    /// Bytes between the parent and this node.
    label: Box<[u8]>,
    /// By first byte of their label, ascending.
    children: Vec<(u8, usize)>,
    /// Values of the key that ends here, ascending.
    values: Vec<u32>,
}

impl Default for Trie {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

impl Trie {
    /// Adds a value to a key. Values must be added in ascending order.
    pub(super) fn insert(&mut self, key: &[u8], value: u32) {
        let mut at = 0;
        let mut rest = key;
        while let Some(&first) = rest.first() {
            match self.nodes[at].children.binary_search_by_key(&first, |&(byte, _)| byte) {
                Ok(position) => {
                    let child = self.nodes[at].children[position].1;
                    let common = common_prefix_len(&self.nodes[child].label, rest);
                    if common < self.nodes[child].label.len() {
                        self.split(child, common);
                    }
                    rest = &rest[common..];
                    at = child;
                }
                Err(position) => {
                    let child = self.nodes.len();
                    self.nodes.push(Node { label: rest.into(), ..Node::default() });
                    self.nodes[at].children.insert(position, (first, child));
                    rest = &[];
                    at = child;
                }
            }
        }
        self.nodes[at].values.push(value);
    }

    /// Calls `each` with the values of every key that `path` starts with, shortest key first.
    pub(super) fn for_each_prefix<'t>(&'t self, path: &[u8], mut each: impl FnMut(&'t [u32])) {
        let mut node = &self.nodes[0];
        let mut rest = path;
        loop {
            if !node.values.is_empty() {
                each(&node.values);
            }
            let Some(&first) = rest.first() else { return };
            let Ok(position) = node.children.binary_search_by_key(&first, |&(byte, _)| byte) else { return };
            node = &self.nodes[node.children[position].1];
            let Some(after) = rest.strip_prefix(&*node.label) else { return };
            rest = after;
        }
    }

    /// Cuts the label of a node in two: the node keeps the first `at` bytes, a new child gets all else.
    fn split(&mut self, node: usize, at: usize) {
        let lower = self.nodes.len();
        let upper = &mut self.nodes[node];
        let (head, tail) = upper.label.split_at(at);
        let (head, tail): (Box<[u8]>, Box<[u8]>) = (head.into(), tail.into());
        let first = tail[0];
        let moved = Node {
            label: tail,
            children: std::mem::replace(&mut upper.children, vec![(first, lower)]),
            values: std::mem::take(&mut upper.values),
        };
        upper.label = head;
        self.nodes.push(moved);
    }
}

fn common_prefix_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_linear_search_finds() {
        let keys = [
            "",
            "/",
            "/a",
            "/ab",
            "/abc/d",
            "/abd",
            "/b",
            "/abc",
            "/a",
            "x",
            "/abcdefgh",
            "/abcdxfgh",
            "/",
            "/ab/",
            "/ä",
            "/ö",
        ];
        let mut trie = Trie::default();
        for (value, key) in keys.iter().enumerate() {
            trie.insert(key.as_bytes(), value as u32);
        }
        for path in [
            "",
            "/",
            "/a",
            "/abc",
            "/abc/d/e",
            "/abcdefghi",
            "/abcdxfg",
            "x",
            "y",
            "/abdx",
            "/ab/",
            "/äx",
            "/ö",
            "/ü",
        ] {
            let mut found = Vec::new();
            trie.for_each_prefix(path.as_bytes(), |values| found.extend_from_slice(values));
            found.sort_unstable();
            let expected: Vec<u32> = (0..keys.len())
                .filter(|&value| path.starts_with(keys[value]))
                .map(|value| value as u32)
                .collect();
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn a_chain_of_prefixes_is_no_problem() {
        let mut trie = Trie::default();
        let path = "a".repeat(10_000);
        for len in 0..path.len() {
            trie.insert(&path.as_bytes()[..len], len as u32);
        }
        let mut count = 0;
        trie.for_each_prefix(path.as_bytes(), |values| count += values.len());
        assert_eq!(count, path.len());
    }
}
