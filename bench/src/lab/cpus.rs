//! Who runs on which CPU.

/// Which CPUs who runs on; none means all.
#[derive(Clone, Debug, Default)]
pub struct Cpus {
    /// The load generator.
    pub client: Vec<usize>,
    /// The backend.
    pub server: Vec<usize>,
    /// What is measured.
    pub proxy: Vec<usize>,
}

impl Cpus {
    /// Of the CPUs this process may use, the proxy has one of its own where there are two, client and server where there
    /// are three.
    pub fn share_out() -> Self {
        let allowed = rustix::thread::sched_getaffinity(None).map(|set| {
            (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect::<Vec<_>>()
        });
        match allowed.unwrap_or_default().as_slice() {
            [] | [_] => Self::default(),
            [first, second] => Self { client: vec![*second], server: vec![*second], proxy: vec![*first] },
            [first, second, third, ..] => {
                Self { client: vec![*second], server: vec![*third], proxy: vec![*first] }
            }
        }
    }
}
