//! Who is measured when.

/// The order of the rows in a round: each begins with another, every other runs backwards.
pub(super) fn order(round: usize, rows: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    order.rotate_left((round / 2) % rows.max(1));
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn every_round_has_every_row_and_first_places_go_round() {
        let mut first = [0; 4];
        for round in 0..16 {
            let mut rows = order(round, 4);
            first[rows[0]] += 1;
            rows.sort_unstable();
            assert_eq!(rows, [0, 1, 2, 3]);
        }
        assert_eq!(first, [4, 4, 4, 4]);
        assert_eq!(order(3, 1), [0]);
        assert_eq!(order(5, 0), Vec::<usize>::new());
    }
}
