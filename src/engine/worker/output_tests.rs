use super::*;
use nix::unistd::write;
use proptest::prelude::*;

struct Pair {
    outputs: [OutputPipe; 2],
    writers: [OwnedFd; 2],
    watch: Epoll,
    shown: OwnedFd,
}

fn pair() -> Pair {
    let Outputs { pipes, for_worker } = Outputs::new("test").unwrap();
    Pair {
        outputs: pipes,
        writers: for_worker.writers,
        watch: Epoll(for_worker.watch),
        shown: for_worker.counts,
    }
}

impl Pair {
    fn write(&self, stream: usize, bytes: &[u8]) {
        assert_eq!(write(&self.writers[stream], bytes), Ok(bytes.len()));
    }

    fn has_data(&self) -> bool {
        self.watch.wait(&mut [EpollEvent::empty()], 0u8) == Ok(1)
    }

    /// The memory as the worker sees it: the sequence number and both counts.
    fn shown(&self) -> [u64; 3] {
        let mut bytes = [0; 24];
        assert_eq!(nix::sys::uio::pread(&self.shown, &mut bytes, 0), Ok(24));
        std::array::from_fn(|at| u64::from_ne_bytes(bytes[8 * at..8 * at + 8].try_into().unwrap()))
    }
}

#[test]
fn output_is_read_once_up_to_the_given_end() {
    let mut pair = pair();
    assert!(!pair.has_data());
    pair.write(0, b"one");
    assert!(pair.has_data());
    let out = &mut pair.outputs[0];
    assert_eq!((out.size(), out.unread_to(None), out.unread_to(Some(2))), (3, 3, 2));
    assert_eq!(out.read_to(Some(2)), "on");
    assert_eq!(out.read_to(Some(2)), "");
    assert_eq!(out.read_to(Some(1)), "");
    assert_eq!((out.size(), out.read_to(None)), (3, "e".into()));
    assert!(!pair.has_data());
    assert!(pair.outputs[0].read_to(None).is_empty() && pair.outputs[1].read_to(Some(5)).is_empty());
    // Each read has changed the number twice.
    let [sequence, out, err] = pair.shown();
    assert_eq!((sequence % 2, out, err), (0, 3, 0));
    assert!(sequence >= 4);
}

#[test]
fn a_pipe_is_small_until_enlarged_and_detects_filling() {
    let mut pair = pair();
    nix::fcntl::fcntl(&pair.writers[1], FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let block = vec![b'x'; 1 << 20];
    let small = write(&pair.writers[1], &block).unwrap();
    assert!(pair.outputs[1].is_filling() && !pair.outputs[0].is_filling());
    pair.outputs[1].enlarge();
    let more = write(&pair.writers[1], &block).unwrap();
    assert!(
        small <= WORKING_PIPE as usize / 2 && small + more <= WORKING_PIPE as usize,
        "{small} {more}"
    );
    assert_eq!(pair.outputs[1].size(), (small + more) as u64);
    pair.write(0, b"of the other stream");
    assert_eq!(pair.outputs[1].read_to(None).len(), small + more);
    assert!(!pair.outputs[1].is_filling());
    assert_eq!(pair.outputs[1].last_output().len(), TAIL_BYTES);
    write(&pair.writers[1], b"end").unwrap();
    pair.outputs[1].read_to(None);
    assert!(pair.outputs[1].last_output().ends_with("xend"));
}

#[test]
fn counts_are_read_only_and_the_watch_keeps_no_pipe_open() {
    let pair = pair();
    assert!(
        nix::sys::uio::pwrite(&pair.shown, &[1; 8], 0).is_err(),
        "the counts must be read-only"
    );
    assert!(nix::unistd::ftruncate(&pair.shown, 0).is_err(), "the counts must not be truncated");
    assert!(!pair.outputs[0].is_closed());
    drop(pair.outputs);
    // SIGPIPE is ignored in every Rust program.
    assert_eq!(write(&pair.writers[0], b"x"), Err(Errno::EPIPE));
}

#[test]
fn a_pipe_without_writers_is_closed() {
    let mut pair = pair();
    pair.write(0, b"last");
    let [out, _err] = pair.writers;
    drop(out);
    assert!(pair.outputs[0].is_closed() && !pair.outputs[1].is_closed());
    assert_eq!(pair.outputs[0].read_to(None), "last");
}

/// Equivalent of `positions` in streams.py.
fn positions(shown: &OwnedFd, writers: &[OwnedFd; 2]) -> (u64, [u64; 2]) {
    let words = |file: &OwnedFd| -> [u64; 3] {
        let mut bytes = [0; 24];
        assert_eq!(nix::sys::uio::pread(file, &mut bytes, 0), Ok(24));
        std::array::from_fn(|at| u64::from_ne_bytes(bytes[8 * at..8 * at + 8].try_into().unwrap()))
    };
    let buffered = |pipe: &OwnedFd| rustix::io::ioctl_fionread(pipe).unwrap();
    loop {
        let before = words(shown);
        if before[0] % 2 == 0 {
            let found = [before[1] + buffered(&writers[0]), before[2] + buffered(&writers[1])];
            if words(shown)[0] == before[0] {
                return (before[0], found);
            }
        }
        std::thread::yield_now();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// A worker writes units' outputs of any size (blocking on a full pipe) and reports its positions after each unit, or no positions
    /// if nothing was written. The engine reads arbitrary amounts in between. Each unit is assigned exactly the bytes that it wrote.
    #[test]
    fn each_unit_gets_exactly_its_own_bytes(
        units in proptest::collection::vec((0usize..30_000, 0usize..200, any::<bool>()), 1..60),
        reads in proptest::collection::vec((0u64..100_000, any::<bool>()), 1..40),
    ) {
        let Pair { mut outputs, writers, watch, shown } = pair();
        let (report, reports) = std::sync::mpsc::channel::<(usize, Option<[u64; 2]>)>();
        let written = units.clone();
        let worker = std::thread::spawn(move || {
            let mut reported = (0, [0, 0]);
            for (number, (out, err, is_silent)) in written.into_iter().enumerate() {
                if !is_silent {
                    for (stream, length) in [(0, out), (1, err)] {
                        let mut rest = &vec![number as u8; length][..];
                        while !rest.is_empty() {
                            let count = write(&writers[stream], rest).unwrap();
                            rest = &rest[count..];
                        }
                    }
                }
                let nothing = watch.wait(&mut [EpollEvent::empty()], 0u8) == Ok(0);
                let is_as_before = {
                    let mut sequence = [0; 8];
                    nix::sys::uio::pread(&shown, &mut sequence, 0).unwrap();
                    u64::from_ne_bytes(sequence) == reported.0
                };
                if nothing && is_as_before {
                    report.send((number, None)).unwrap();
                    continue;
                }
                let found = positions(&shown, &writers);
                report.send((number, (found.1 != reported.1).then_some(found.1))).unwrap();
                reported = found;
            }
        });
        let (mut early, mut ended, mut reads) = (<[Vec<u8>; 2]>::default(), 0, reads.into_iter().cycle());
        while let Some((limit, waits)) = reads.next().filter(|_| ended < units.len()) {
            // Like a sync: output written so far, after the ends reported so far, belongs to the running unit.
            let sizes: [u64; 2] = [0, 1].map(|stream: usize| outputs[stream].size());
            while let Ok(end) = reports.try_recv() {
                check(&mut outputs, &mut early, end, &units)?;
                ended += 1;
            }
            for (stream, size) in sizes.into_iter().enumerate() {
                let end = size.min(outputs[stream].read() + limit);
                early[stream].extend_from_slice(&outputs[stream].read_to(Some(end)));
            }
            if waits && !outputs.iter().any(OutputPipe::is_filling)
                && let Ok(end) = reports.recv_timeout(std::time::Duration::from_millis(1))
            {
                check(&mut outputs, &mut early, end, &units)?;
                ended += 1;
            }
        }
        worker.join().unwrap();
        prop_assert!(outputs.iter().all(|output| output.unread_to(None) == 0));
    }
}

/// Checks a unit that has ended: the bytes read early and the rest before its end are the bytes that it wrote.
fn check(
    outputs: &mut [OutputPipe; 2],
    early: &mut [Vec<u8>; 2],
    (number, ends): (usize, Option<[u64; 2]>),
    units: &[(usize, usize, bool)],
) -> Result<(), TestCaseError> {
    let (out, err, is_silent) = units[number];
    for (stream, length) in [(0, out), (1, err)] {
        let mut bytes = std::mem::take(&mut early[stream]);
        if let Some(ends) = ends {
            bytes.extend_from_slice(&outputs[stream].read_to(Some(ends[stream])));
        }
        let expected = vec![number as u8; if is_silent { 0 } else { length }];
        prop_assert!(
            bytes == expected,
            "unit {number}, stream {stream}: {} bytes of {}",
            bytes.len(),
            expected.len()
        );
    }
    Ok(())
}
