//! Memory of idle connections: each made one request and is kept.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::ProgressBar;

use super::contender::Contender;
use super::metric::{Metric, Sample};
use super::results::ScenarioResults;
use super::stage::{Running, Stage};
use super::workload::IDLE_COUNTS;
use super::{Budget, Settings};
use crate::lab::{interrupt, usage};

/// Connections that wait for their answers at the same time, and so about as many to the backend.
const BATCH: usize = 64;

/// How long a contender has to give back what it only needed for a moment.
const SETTLE: Duration = Duration::from_millis(300);

const TIMEOUT: Duration = Duration::from_secs(5);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";

/// Descriptors that are needed for other things than connections.
const SPARE_DESCRIPTORS: u64 = 200;

/// Adds memory to the rows, in rounds of its own: every contender is started anew for each.
pub(super) fn run(
    stage: &Stage<'_>,
    settings: &Settings,
    budget: &Budget,
    results: &mut ScenarioResults,
    progress: &ProgressBar,
) -> anyhow::Result<()> {
    let counts = counts(settings, results);
    let mut longest = Duration::ZERO;
    for round in 0..settings.memory_rounds {
        if round > 0 && !budget.has_room_for(longest) {
            results
                .notes
                .push(format!("{round} of {} rounds of memory: the time was up", settings.memory_rounds));
            break;
        }
        if progress.is_hidden() {
            eprintln!("memory: round {} of {}", round + 1, settings.memory_rounds);
        }
        let began = Instant::now();
        for index in 0..results.rows.len() {
            let contender = results.rows[index].contender;
            if matches!(contender, Contender::None | Contender::Control) {
                continue;
            }
            progress.set_message(format!("memory: {}", contender.name()));
            let running = stage.start(contender)?;
            match measure(&running, &counts).with_context(|| contender.name()) {
                Ok(sample) => merge(&mut results.rows[index].samples, round as usize, sample),
                Err(error) => {
                    interrupt::check()?;
                    results.notes.push(format!("{error:#}"));
                }
            }
        }
        longest = longest.max(began.elapsed());
    }
    Ok(())
}

/// The counts that this process has descriptors for; says so where it has not.
fn counts(settings: &Settings, results: &mut ScenarioResults) -> Vec<u32> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    // A proxy needs one for each client, and may need one more for each to the backend.
    let room = limit.saturating_sub(SPARE_DESCRIPTORS) / 2;
    let wanted = IDLE_COUNTS.iter().copied().filter(|count| *count <= settings.idle_connections_max);
    let (counts, beyond): (Vec<u32>, Vec<u32>) = wanted.partition(|count| u64::from(*count) <= room);
    if !beyond.is_empty() {
        results.notes.push(format!(
            "memory at {beyond:?} connections needs more than {limit} descriptors (ulimit -n)"
        ));
    }
    counts
}

fn measure(running: &Running, counts: &[u32]) -> anyhow::Result<Sample> {
    let pid = running.pid().context("no process")?;
    let rss = || -> anyhow::Result<f64> {
        thread::sleep(SETTLE);
        Ok(usage::rss_kb(pid)? as f64 / 1024.0)
    };
    let mut sample = Sample::new();
    let start = rss()?;
    sample.insert(Metric::RssStart, start);
    let mut held: Vec<TcpStream> = Vec::new();
    for &count in counts {
        while held.len() < count as usize {
            interrupt::check()?;
            let batch = (count as usize - held.len()).min(BATCH);
            open(running.address.into(), batch, &mut held)
                .with_context(|| format!("after {} connections", held.len()))?;
        }
        let now = rss()?;
        if let Some(metric) = Metric::rss_at(count) {
            sample.insert(metric, now);
        }
        sample.insert(Metric::RssEach, (now - start) * 1024.0 / f64::from(count));
    }
    Ok(sample)
}

/// Opens connections and makes a request on each.
fn open(target: SocketAddr, count: usize, held: &mut Vec<TcpStream>) -> io::Result<()> {
    let mut fresh = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(REQUEST)?;
        fresh.push(stream);
    }
    for stream in &mut fresh {
        answer(stream)?;
    }
    held.append(&mut fresh);
    Ok(())
}

/// Reads an answer to its end.
fn answer(stream: &mut TcpStream) -> io::Result<()> {
    let mut reader = crate::load::ResponseReader::new(false);
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match reader.advance(&buffer[..count]).map_err(io::Error::other)? {
            Some(finished) if finished.status == 200 => return Ok(()),
            Some(finished) => return Err(io::Error::other(format!("status {}", finished.status))),
            None => {}
        }
    }
}

/// Puts a sample of memory beside what the same round measured.
fn merge(samples: &mut Vec<Sample>, round: usize, sample: Sample) {
    if samples.len() <= round {
        samples.resize(round + 1, Sample::new());
    }
    samples[round].extend(sample);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_joins_the_round_it_belongs_to() {
        let mut samples = vec![Sample::from([(Metric::ConnectionCpu, 1.0)])];
        merge(&mut samples, 0, Sample::from([(Metric::Rss500, 2.0)]));
        merge(&mut samples, 2, Sample::from([(Metric::Rss500, 3.0)]));
        assert_eq!((samples.len(), samples[0].len(), samples[1].len()), (3, 2, 0));
        assert_eq!(samples[2][&Metric::Rss500], 3.0);
    }
}
