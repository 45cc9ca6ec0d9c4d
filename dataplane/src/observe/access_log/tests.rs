use std::fs;

use super::*;

const NEVER: Duration = Duration::from_secs(3_600);

fn logs(flush_interval: Duration, flush_size: usize) -> (AccessLogs, Registry) {
    let registry = Registry::new();
    (AccessLogs::new(Options { flush_interval, flush_size }, &registry).unwrap(), registry)
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    (directory, path)
}

/// Waits for what another thread will do; the bound is a guard against hanging.
fn until(mut done: impl FnMut() -> bool) {
    let guard = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < guard, "nothing happened");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn lines_arrive_whole_and_in_order() {
    const LINES: u64 = 5_000;
    let (_directory, path) = file();
    let (logs, registry) = logs(NEVER, 32);
    let writers: Vec<_> = (0..4)
        .map(|worker| {
            let sink = logs.sink(&path).unwrap();
            thread::spawn(move || {
                for line in 0..LINES {
                    while sink.queue.full.is_full() {
                        thread::yield_now();
                    }
                    sink.write_line(format!("{worker} {line}").as_bytes());
                }
                assert_eq!(sink.dropped(), 0);
            })
        })
        .collect();
    // Open buffers are taken away all the while, which must not disturb the order.
    while !writers.iter().all(JoinHandle::is_finished) {
        logs.flush();
    }
    for writer in writers {
        writer.join().unwrap();
    }
    logs.flush();
    let text = fs::read_to_string(&path).unwrap();
    let mut next = [0; 4];
    for line in text.lines() {
        let (worker, number) = line.split_once(' ').unwrap();
        let worker: usize = worker.parse().unwrap();
        assert_eq!(number, next[worker].to_string());
        next[worker] += 1;
    }
    assert_eq!(next, [LINES; 4]);
    assert!(registry.snapshot().value("filesystem.write_completed").unwrap() > 10);
}

#[test]
fn a_newline_is_added_only_where_it_is_missing() {
    let (_directory, path) = file();
    let (logs, _) = logs(NEVER, 4_096);
    let sink = logs.sink(&path).unwrap();
    for line in [b"one".as_slice(), b"two\n", b"", b"three"] {
        sink.write_line(line);
    }
    logs.flush();
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n\nthree\n");
}

#[test]
fn a_full_buffer_is_written_without_waiting_and_the_rest_by_the_timer() {
    let (_directory, path) = file();
    let (logs_full, _) = logs(NEVER, 8);
    logs_full.sink(&path).unwrap().write_line(b"0123456789");
    until(|| fs::read(&path).unwrap().len() == 11);

    let (_directory, path) = file();
    let (logs_timer, registry) = logs(Duration::from_millis(5), 1 << 20);
    logs_timer.sink(&path).unwrap().write_line(b"short");
    until(|| fs::read(&path).unwrap() == b"short\n");
    until(|| registry.snapshot().value("filesystem.flushed_by_timer") >= Some(1));
}

#[test]
fn reopening_follows_a_rename() {
    let (directory, path) = file();
    let (logs, _) = logs(NEVER, 4_096);
    let sink = logs.sink(&path).unwrap();
    sink.write_line(b"before");
    let moved = directory.path().join("access.log.1");
    logs.flush();
    fs::rename(&path, &moved).unwrap();
    sink.write_line(b"between");
    logs.reopen();
    logs.flush();
    sink.write_line(b"after");
    logs.flush();
    assert_eq!(fs::read_to_string(&moved).unwrap(), "before\nbetween\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "after\n");
}

#[test]
fn a_failed_reopening_keeps_the_old_file() {
    let (directory, path) = file();
    let (logs, registry) = logs(NEVER, 4_096);
    let sink = logs.sink(&path).unwrap();
    let moved = directory.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    fs::create_dir(&path).unwrap();
    logs.reopen();
    logs.flush();
    sink.write_line(b"still here");
    logs.flush();
    assert_eq!(fs::read_to_string(&moved).unwrap(), "still here\n");
    assert_eq!(registry.snapshot().value("filesystem.reopen_failed"), Some(1));
}

#[test]
fn dropping_the_logs_writes_what_is_buffered() {
    let (_directory, path) = file();
    let (logs, _) = logs(NEVER, 4_096);
    let sink = logs.sink(&path).unwrap();
    sink.write_line(b"last words");
    drop(logs);
    assert_eq!(fs::read_to_string(&path).unwrap(), "last words\n");
    // A sink that outlives the logs fills its buffers and drops the rest, without ever waiting.
    for _ in 0..200_000 {
        sink.write_line(&[b'x'; 100]);
    }
    assert!(sink.dropped() > 0);
}

#[test]
fn a_dropped_sink_is_written_out_and_forgotten() {
    let (_directory, path) = file();
    let (logs, _) = logs(NEVER, 4_096);
    let sink = logs.sink(&path).unwrap();
    sink.write_line(b"bye");
    drop(sink);
    logs.flush();
    logs.flush();
    assert_eq!(fs::read_to_string(&path).unwrap(), "bye\n");
    assert!(logs.0.shared.lock_files().is_empty());
}

#[test]
fn a_disk_that_takes_nothing_costs_lines_not_time() {
    let (logs, registry) = logs(NEVER, 64);
    let sink = logs.sink("/dev/full").unwrap();
    for _ in 0..1_000 {
        sink.write_line(b"to nowhere, and no further than the device that is always full");
    }
    logs.flush();
    assert!(registry.snapshot().value("filesystem.write_failed").unwrap() > 0);
}

#[test]
fn a_path_that_cannot_be_opened_is_named() {
    let (logs, _) = logs(NEVER, 64);
    let error = logs.sink("/nonexistent/dir/access.log").unwrap_err();
    assert!(error.to_string().starts_with("access log /nonexistent/dir/access.log: "), "{error}");
}

#[test]
fn standard_streams_are_not_opened_as_files() {
    assert!(matches!(Target::open(Path::new("/dev/stdout")).unwrap(), Target::Stdout));
    assert!(matches!(Target::open(Path::new("/dev/stderr")).unwrap(), Target::Stderr));
}
