//! Lists of array elements as batch systems print them.

/// No array has more elements.
const MOST: usize = 1_000_000;

/// The numbers of `1`, `7-15:1`, `13,14`, `1-10:3,20`. What is no number is passed over.
pub fn expand(text: &str) -> Vec<u32> {
    let mut all = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (range, step) = part.split_once(':').unwrap_or((part, "1"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last), Ok(step)) = (first.parse::<u32>(), last.parse::<u32>(), step.parse::<usize>()) else {
            continue;
        };
        let room = MOST.saturating_sub(all.len());
        all.extend((first..=last).step_by(step.max(1)).take(room));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_in_every_spelling() {
        assert_eq!(expand("3"), [3]);
        assert_eq!(expand("7-9:1"), [7, 8, 9]);
        assert_eq!(expand("13,14"), [13, 14]);
        assert_eq!(expand("1-10:4,20, 30-31"), [1, 5, 9, 20, 30, 31]);
        assert_eq!(expand("undefined"), [] as [u32; 0]);
        assert_eq!(expand("9-7"), [] as [u32; 0]);
        assert_eq!(expand("0-4294967295").len(), MOST);
    }
}
