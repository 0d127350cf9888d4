//! Fetches long values into their rows: the pieces that follow are requested before the first has come, also those of the next rows, so
//! that the controller reads and sends while this process writes. From a controller on this host, it reads their files itself.
use super::follow::NotTaken;
use crate::cli::values::LongValue;
use crate::client::{Client, ClientError};
use crate::model::TaskId;
use crate::model::output::Stream;
use crate::model::task::TaskRow;
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::Future;
use tokio::task::JoinHandle;

/// The controller answers with pieces of this size, unless it is another version.
const PIECE: u64 = 1 << 20;
/// The maximum number of requests without an answer.
const IN_FLIGHT: usize = 4;

/// A piece of a value: the task, its run, the offset.
type Place = (TaskId, u32, u64);

/// The pieces of the values of some rows, in order.
pub(super) struct LongValues<F> {
    request: F,
    wanted: VecDeque<Place>,
    in_flight: VecDeque<(Place, Aborted)>,
}

struct Aborted(JoinHandle<Result<Bytes, ClientError>>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The values of these rows.
pub(super) fn long_values(
    client: &Client,
    rows: &[TaskRow],
) -> LongValues<impl Fn(Place) -> JoinHandle<Result<Bytes, ClientError>> + use<>> {
    let client = client.clone();
    let is_local = client.is_local();
    let piece = if is_local { u64::MAX } else { PIECE };
    LongValues::new(rows, piece, move |(task, run, start)| {
        let client = client.clone();
        tokio::spawn(async move {
            match is_local && start == 0 {
                true => client.output_by_file(task, run, Stream::Value).await,
                false => Ok(client.output(task, Some(run), Stream::Value, start).await?.1),
            }
        })
    })
}

impl<F: Fn(Place) -> JoinHandle<Result<Bytes, ClientError>>> LongValues<F> {
    fn new(rows: &[TaskRow], piece: u64, request: F) -> LongValues<F> {
        let starts = |size: u64| (0..size.div_ceil(piece)).map(move |i| i * piece);
        let places = |row: &TaskRow| {
            let (task, run) = (row.task, row.run);
            starts(row.value_size.unwrap_or_default()).map(move |start| (task, run, start))
        };
        LongValues {
            request,
            wanted: rows.iter().flat_map(places).collect(),
            in_flight: VecDeque::new(),
        }
    }

    /// Fetches the value of the next row.
    pub(super) async fn fetch(&mut self, row: &mut TaskRow) -> Result<(), NotTaken> {
        let Some(size) = row.value_size else { return Ok(()) };
        let mut value = LongValue::new(row.task, size).map_err(NotTaken::Taking)?;
        while let Some(start) = value.missing() {
            let piece = self.piece((row.task, row.run, start)).await;
            value.add(piece.map_err(NotTaken::Fetching)?).map_err(NotTaken::Taking)?;
        }
        // Left where pieces were longer than expected.
        let of_other_row = |place: &Place| place.0 != row.task;
        self.wanted.retain(of_other_row);
        self.in_flight.retain(|(place, _)| of_other_row(place));
        value.put_into(row).map_err(NotTaken::Taking)
    }

    fn piece(&mut self, place: Place) -> impl Future<Output = Result<Bytes, ClientError>> + use<F> {
        while self.in_flight.len() < IN_FLIGHT
            && let Some(next) = self.wanted.pop_front()
        {
            self.in_flight.push_back((next, Aborted((self.request)(next))));
        }
        let at = self.in_flight.iter().position(|(known, _)| *known == place);
        let mut task = match at.and_then(|at| self.in_flight.remove(at)) {
            Some((_, task)) => task,
            None => Aborted((self.request)(place)),
        };
        async move { (&mut task.0).await.unwrap_or_else(|_| Ok(Bytes::new())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MapId;
    use std::sync::{Arc, Mutex};

    /// Values of these sizes, in pieces of at most `piece` bytes; the rows with their values, and the requested places.
    async fn fetched(sizes: &[u64], piece: u64) -> (Vec<String>, Vec<(u32, u64)>) {
        let text = |index: u32, size: u64| format!("\"{}\"", char::from(b'a' + index as u8).to_string().repeat(size as usize - 2));
        let mut rows: Vec<TaskRow> = (0..)
            .zip(sizes)
            .map(|(index, size)| {
                let mut row = crate::cli::values::tests::row(index, None);
                (row.task, row.run, row.value, row.value_size) = (TaskId::new(MapId(1), index), 3, None, Some(*size));
                row
            })
            .collect();
        let (asked, known) = (Arc::new(Mutex::new(Vec::new())), sizes.to_vec());
        let log = asked.clone();
        let mut values = LongValues::new(&rows, PIECE, move |(task, run, start)| {
            assert_eq!(run, 3);
            log.lock().unwrap().push((task.index, start));
            let value = text(task.index, known[task.index as usize]).into_bytes();
            let end = value.len().min((start + piece) as usize);
            tokio::spawn(async move { Ok(Bytes::copy_from_slice(&value[start as usize..end])) })
        });
        for row in &mut rows {
            values.fetch(row).await.unwrap_or_else(|_| panic!("fetched"));
        }
        let found = rows.iter().map(|row| row.value.as_ref().unwrap().get().to_string()).collect();
        let expected: Vec<String> = (0..).zip(sizes).map(|(index, size)| text(index, *size)).collect();
        assert_eq!(found, expected);
        let asked = asked.lock().unwrap().clone();
        (found, asked)
    }

    #[tokio::test]
    async fn pieces_are_requested_ahead_and_once() {
        let (_, asked) = fetched(&[2 * PIECE + 5, 7, PIECE], PIECE).await;
        assert_eq!(asked, [(0, 0), (0, PIECE), (0, 2 * PIECE), (1, 0), (2, 0)]);
    }

    #[tokio::test]
    async fn pieces_of_any_size_make_up_the_value() {
        for piece in [PIECE / 3, PIECE - 1, PIECE + 1, 3 * PIECE] {
            fetched(&[2 * PIECE + 5, PIECE, 3], piece).await;
        }
    }
}
