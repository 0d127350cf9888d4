//! An independent count of the digit pairs of pi, to hold the cluster's sum against.
use std::fs;
use std::path::Path;

/// How often each of `00` to `99` stands in the files that `listing` names, overlaps counted, file borders not crossed.
pub fn count_pairs(listing: &Path) -> Result<Vec<u64>, String> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()));
    let mut counts = vec![0; 100];
    for path in read(listing)?.lines() {
        add_pairs(&read(Path::new(path))?, &mut counts);
    }
    Ok(counts)
}

fn add_pairs(digits: &str, counts: &mut [u64]) {
    let digits: Vec<usize> = digits.bytes().filter(u8::is_ascii_digit).map(|b| usize::from(b - b'0')).collect();
    for pair in digits.windows(2) {
        counts[10 * pair[0] + pair[1]] += 1;
    }
}

/// The numbers of a JSON list of whole numbers; None for anything else.
pub fn parse_counts(text: &str) -> Option<Vec<u64>> {
    let inside = text.trim().strip_prefix('[')?.strip_suffix(']')?;
    inside.split(',').map(|number| number.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_overlap() {
        let mut counts = vec![0; 100];
        add_pairs("314111\n", &mut counts);
        let seen: Vec<_> = counts.iter().enumerate().filter(|(_, n)| **n > 0).collect();
        assert_eq!(seen, [(11, &2), (14, &1), (31, &1), (41, &1)]);
    }

    #[test]
    fn json_lists_of_numbers() {
        assert_eq!(parse_counts("[1, 2,30]\n"), Some(vec![1, 2, 30]));
        assert_eq!(parse_counts("[1, null]"), None);
        assert_eq!(parse_counts("{}"), None);
    }
}
