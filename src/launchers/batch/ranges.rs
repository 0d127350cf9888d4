//! Lists of array elements as batch systems print them.

/// The maximum number of elements of an array.
const MAX_ELEMENTS: usize = 1_000_000;

/// Parses `1`, `7-15:1`, `13,14`, `1-10:3,20`. Skips anything that is not a number.
pub(crate) fn expand(text: &str) -> Vec<u32> {
    let mut all = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (range, step) = part.split_once(':').unwrap_or((part, "1"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last), Ok(step)) = (first.parse::<u32>(), last.parse::<u32>(), step.parse::<usize>()) else {
            continue;
        };
        let room = MAX_ELEMENTS.saturating_sub(all.len());
        all.extend((first..=last).step_by(step.max(1)).take(room));
    }
    all
}

/// Formats sorted numbers: `1-3,7` for 1, 2, 3, 7.
pub(crate) fn collapse(numbers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match parts.last_mut() {
            Some((_, last)) if number.saturating_sub(*last) <= 1 => *last = *number,
            _ => parts.push((*number, *number)),
        }
    }
    let part = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_numbers_become_ranges() {
        assert_eq!(collapse(&[1, 2, 3, 7, 9, 10]), "1-3,7,9-10");
        assert_eq!(collapse(&[]), "");
    }

    #[test]
    fn lists_in_every_format() {
        assert_eq!(expand("3"), [3]);
        assert_eq!(expand("7-9:1"), [7, 8, 9]);
        assert_eq!(expand("13,14"), [13, 14]);
        assert_eq!(expand("1-10:4,20, 30-31"), [1, 5, 9, 20, 30, 31]);
        assert_eq!(expand("undefined"), [] as [u32; 0]);
        assert_eq!(expand("9-7"), [] as [u32; 0]);
        assert_eq!(expand("0-4294967295").len(), MAX_ELEMENTS);
    }
}
