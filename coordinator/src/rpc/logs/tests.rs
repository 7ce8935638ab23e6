use foil_common::logs::Part;

use super::*;

const JOB: &str = "j1";

fn process(attempt: u32, rank: u32) -> Process {
    Process { attempt, rank, session: format!("s{attempt}{rank}") }
}

fn line(time: u32, message: &str) -> String {
    format!("{{\"time\":{time},\"phase\":\"p\",\"message\":\"{message}\"}}\n")
}

/// Writes a part that starts at an offset; returns the offset after it.
async fn write(store: &Store, process: &Process, start: u64, text: &str, is_last: bool) -> u64 {
    let end = start + text.len() as u64;
    let part = Part { process: process.clone(), start, end, is_last };
    store.put_object(&part.key(JOB), text.to_owned().into()).await.unwrap();
    end
}

#[derive(Default)]
struct Taken(Vec<String>);

impl Sink for Taken {
    async fn take(&mut self, line: v1::RankLogLine, _: &Cursor) -> Result<(), Status> {
        let v1::RankLogLine { attempt, rank, line, dropped_bytes } = line;
        let text = match dropped_bytes {
            0 => serde_json::from_str::<serde_json::Value>(&line).unwrap()["message"]
                .as_str()
                .unwrap()
                .to_owned(),
            bytes => format!("-{bytes}"),
        };
        self.0.push(format!("{attempt}.{rank}:{text}"));
        Ok(())
    }
}

fn reader(store: &Store, filter: Filter, cursor: &str) -> Reader {
    Reader::new(store.clone(), JOB, filter, cursor.parse().unwrap())
}

async fn pass(reader: &mut Reader, attempt: u32) -> Vec<String> {
    let mut taken = Taken::default();
    reader.pass(attempt, &mut taken).await.unwrap();
    taken.0
}

#[tokio::test]
async fn lines_of_an_attempt_are_merged_by_time_and_read_once() {
    let store = Store::in_memory();
    let (first, second) = (process(1, 0), process(1, 1));
    let a = write(&store, &first, 0, &[line(1, "a"), line(5, "c")].concat(), false).await;
    write(&store, &second, 0, &[line(3, "b"), line(7, "e")].concat(), false).await;
    write(&store, &process(2, 0), 0, &line(2, "z"), true).await;
    let mut reading = reader(&store, Filter::default(), "");
    let expected = ["1.0:a", "1.1:b", "1.0:c", "1.1:e", "2.0:z"];
    assert_eq!(pass(&mut reading, 2).await, expected, "a later attempt follows, whatever its time");
    assert!(reading.awaits(&first) && !reading.awaits(&process(2, 0)));
    assert!(pass(&mut reading, 2).await.is_empty());
    let token = reading.cursor.to_string();

    let more = line(8, "f");
    write(&store, &first, a, &more, false).await;
    // A part that covers the whole log, with the small one deleted.
    let whole = [line(1, "a"), line(5, "c"), more, line(9, "g")].concat();
    write(&store, &first, 0, &whole, true).await;
    assert_eq!(pass(&mut reading, 2).await, ["1.0:f", "1.0:g"]);
    assert!(!reading.awaits(&first));
    assert_eq!(pass(&mut reader(&store, Filter::default(), &token), 2).await, ["1.0:f", "1.0:g"]);
}

#[tokio::test]
async fn dropped_bytes_are_told_where_they_were() {
    let store = Store::in_memory();
    let log = process(1, 0);
    let end = write(&store, &log, 1000, &line(1, "a"), false).await;
    write(&store, &log, end + 500, &line(2, "b"), true).await;
    let mut reading = reader(&store, Filter::default(), "");
    assert_eq!(pass(&mut reading, 1).await, ["1.0:-1000", "1.0:a", "1.0:-500", "1.0:b"]);
}

#[tokio::test]
async fn a_tail_is_the_end_of_all_ranks_logs_together() {
    let store = Store::in_memory();
    for attempt in 1..=2 {
        for rank in 0..2 {
            let (log, mut end) = (process(attempt, rank), 0);
            for number in 0..50 {
                let text = line(number * 2 + rank, &number.to_string());
                end = write(&store, &log, end, &text, number == 49).await;
            }
        }
    }
    let last = async |lines: usize, filter: Filter| {
        let mut reading = reader(&store, filter, "");
        reading.seek_tail(lines).await.unwrap();
        let mut tail = Tail::new(lines);
        reading.pass(2, &mut tail).await.unwrap();
        assert!(pass(&mut reading, 2).await.is_empty(), "it continues after the tail");
        let mut taken = Taken::default();
        for line in tail.into_lines() {
            taken.take(line, &reading.cursor).await.unwrap();
        }
        taken.0
    };
    assert_eq!(last(3, Filter::default()).await, ["2.1:48", "2.0:49", "2.1:49"]);
    let all = last(102, Filter::default()).await;
    assert_eq!((all.len(), all[0].as_str(), all[1].as_str()), (102, "1.0:49", "1.1:49"));
    assert_eq!(last(1000, Filter::default()).await.len(), 200);
    let of_first = Filter { attempt: Some(1), ..Filter::default() };
    assert_eq!(last(1, of_first).await, ["1.1:49"]);
}
