use foil_common::spec::DeviceKind;
use foil_proto::v1;

/// Why a job lacks some of the devices that it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    pub kind: DeviceKind,
    /// Number of ranks without a device.
    pub lacking: usize,
    /// The job has no devices yet.
    pub starts: bool,
    /// Devices of the kind that are left after the jobs before it, on workers of the release that it waits
    /// for.
    pub free: usize,
    pub connected: usize,
    pub excluded: usize,
    /// Devices on workers of other releases, which the ranks of one job cannot share.
    pub others: usize,
    /// Position among the jobs that wait for the same devices, from 1.
    pub position: u32,
    pub cause: WaitCause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitCause {
    /// Too few are free.
    Devices,
    /// The job asks for more than the connected workers have.
    TooLarge,
    /// The free devices are reserved for a job before it.
    Kept,
    /// The attempts that hold its devices are ending.
    Coming,
    /// The workers of its other ranks have not registered yet, so their version is unknown.
    Unheard,
    /// Its tenant runs the maximum number of jobs.
    TenantJobs { running: usize, max: usize },
    /// Its tenant uses the maximum number of devices.
    TenantDevices { used: usize, max: usize },
    /// The rest of its tenant's quota is reserved for a job before it.
    TenantKept,
    /// The job asks for more than its tenant may use.
    TenantTooLarge { max: usize },
}

impl Wait {
    /// The wait of a job of `tenant` as users see it.
    pub fn view(&self, tenant: &str) -> v1::JobWait {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        v1::JobWait {
            reason: self.reason(tenant),
            device: self.kind.to_string(),
            wanted: count(self.lacking),
            free: count(self.free),
            connected: count(self.connected),
            position: self.position,
        }
    }

    /// The parts whose change is worth a notice. The number of free devices changes too often.
    pub fn news(&self) -> (usize, usize, u32, std::mem::Discriminant<WaitCause>) {
        (self.lacking, self.connected, self.position, std::mem::discriminant(&self.cause))
    }

    /// [`Wait::news`] without its place in the queue.
    pub fn moved(&self) -> (usize, usize, std::mem::Discriminant<WaitCause>) {
        (self.lacking, self.connected, std::mem::discriminant(&self.cause))
    }

    fn reason(&self, tenant: &str) -> String {
        let Self { kind, lacking, free, connected, .. } = *self;
        let more = if self.starts { "" } else { "more " };
        let wanted = format!("waiting for {lacking} {more}{kind} {}", devices(lacking));
        let note = self.elsewhere();
        let why = match self.cause {
            WaitCause::Devices => format!("{free} of {connected} free{note}"),
            WaitCause::TooLarge => format!("the workers connected now have {connected}{note}"),
            WaitCause::Kept => format!("{free} of {connected} free, kept for a job before this one{note}"),
            WaitCause::Coming => format!("{free} of {connected} free{note}, the others are being given back"),
            WaitCause::Unheard => {
                "the workers of its other ranks have not registered with this coordinator yet".to_owned()
            }
            WaitCause::TenantJobs { running, max } => {
                format!("tenant {tenant} runs {running} of its {max} {}", jobs(max))
            }
            WaitCause::TenantDevices { used, max } => {
                format!("tenant {tenant} uses {used} of its {max} {kind} {}", devices(max))
            }
            WaitCause::TenantKept => {
                format!("what is left of the quota of tenant {tenant} is kept for a job before this one")
            }
            WaitCause::TenantTooLarge { max } => {
                format!("tenant {tenant} may use {max} {kind} {} at once", devices(max))
            }
        };
        let position = match self.position {
            1 => String::new(),
            position => format!("; {} in the queue", ordinal(position)),
        };
        format!("{wanted}; {why}{position}")
    }

    /// The devices that do not count, and why.
    fn elsewhere(&self) -> String {
        let notes = [
            (self.excluded, "on workers that are excluded"),
            (self.others, "on workers of another version or build"),
        ];
        let notes = notes.iter().filter(|(count, _)| *count > 0);
        let notes: Vec<String> = notes.map(|(count, which)| format!("{count} {which}")).collect();
        if notes.is_empty() { String::new() } else { format!(" (and {})", notes.join(", ")) }
    }
}

fn devices(count: usize) -> &'static str {
    if count == 1 { "device" } else { "devices" }
}

fn jobs(count: usize) -> &'static str {
    if count == 1 { "job" } else { "jobs" }
}

fn ordinal(number: u32) -> String {
    const WORDS: [&str; 9] =
        ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"];
    let word = (number as usize).checked_sub(1).and_then(|index| WORDS.get(index));
    word.map_or_else(|| format!("number {number}"), |word| (*word).to_owned())
}
