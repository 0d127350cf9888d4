//! An inputs file is read twice: to count and check it, then to send it. Verifies that both reads are identical.
use super::rows::InputError;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Of the bytes that have been read.
#[derive(Clone, Default)]
pub(super) struct Fingerprint(Arc<AtomicU64>);

impl Fingerprint {
    pub(super) fn of<R: Read>(&self, inner: R) -> impl Read + use<R> {
        Hashed {
            inner,
            hasher: DefaultHasher::new(),
            fingerprint: self.clone(),
        }
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Hashed<R> {
    inner: R,
    hasher: DefaultHasher,
    fingerprint: Fingerprint,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.write(buffer.get(..count).unwrap_or_default());
        self.fingerprint.0.store(self.hasher.finish(), Ordering::Relaxed);
        Ok(count)
    }
}

/// The inputs, followed by an error if their number differs from `counted`, or if `is_same` is false at the end.
pub(super) fn same(
    inputs: impl Iterator<Item = Result<String, InputError>>,
    source: String,
    counted: u64,
    is_same: impl Fn() -> bool,
) -> impl Iterator<Item = Result<String, InputError>> {
    let mut inputs = inputs.fuse();
    let (mut sent, mut is_over) = (0, false);
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let changed = |why: String| {
            let (line, column) = (None, None);
            let source = source.clone();
            Some(Err(InputError { source, line, column, why }))
        };
        match inputs.next() {
            Some(Ok(_)) if sent == counted => {
                is_over = true;
                let all = sent + 1 + inputs.by_ref().take_while(Result::is_ok).count() as u64;
                changed(format!("changed while being read: counted {counted} inputs, now it has {all}"))
            }
            Some(Ok(input)) => {
                sent += 1;
                Some(Ok(input))
            }
            Some(Err(error)) => {
                is_over = true;
                changed(format!(
                    "changed while being read: counted {counted} inputs, error after {sent} of them: {error}"
                ))
            }
            None if sent < counted => {
                is_over = true;
                changed(format!("changed while being read: counted {counted} inputs, now it has {sent}"))
            }
            None if !is_same() => {
                is_over = true;
                changed(format!("changed while being read: still {counted} inputs, but different ones"))
            }
            None => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(inputs: &[&str], counted: u64, is_same: bool) -> Vec<Result<String, String>> {
        let inputs: Vec<Result<String, InputError>> = inputs.iter().map(|input| Ok(input.to_string())).collect();
        let sent = same(inputs.into_iter(), "in.txt".into(), counted, move || is_same);
        sent.map(|input| input.map_err(|error| error.to_string())).collect()
    }

    #[test]
    fn a_changed_file_is_an_error_with_both_numbers() {
        assert_eq!(sent(&["a", "b"], 2, true), [Ok("a".into()), Ok("b".into())]);
        let error = |why: &str| Err(format!("in.txt: changed while being read: {why}"));
        assert_eq!(sent(&["a"], 2, true), [Ok("a".into()), error("counted 2 inputs, now it has 1")]);
        assert_eq!(
            sent(&["a", "b", "c", "d"], 2, true).pop().unwrap(),
            error("counted 2 inputs, now it has 4")
        );
        assert_eq!(sent(&["a"], 1, false).pop().unwrap(), error("still 1 inputs, but different ones"));
    }

    #[test]
    fn a_fingerprint_covers_all_bytes() {
        let of = |text: &'static str| {
            let fingerprint = Fingerprint::default();
            io::copy(&mut fingerprint.of(text.as_bytes()), &mut io::sink()).unwrap();
            fingerprint.get()
        };
        assert_eq!(of("abc"), of("abc"));
        assert_ne!(of("abc"), of("abd"));
    }
}
