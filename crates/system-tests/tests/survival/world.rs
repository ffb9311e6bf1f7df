//! An installation that is ordered about and killed, and what has to hold of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};

use rustix::process::Signal;
use serde_json::{Value, json};
use system_tests::http::Ask;
use system_tests::processes::Process;
use system_tests::wait::until;
use system_tests::{Account, Installation, Response, Setup, channel};
use types::Role;

use super::model::{Operation, Pair, Sandbox, Step};

/// What is different from the configuration that everybody has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    /// With guests that can be made to ignore SIGTERM.
    Hostile,
    /// Sandboxes are stopped in which nothing happens for a second.
    Idle,
}

impl Kind {
    /// The same for the same seed; as many seeds in a row as there are have each.
    pub(crate) fn of(seed: u64) -> Self {
        match seed % 3 {
            0 => Self::Plain,
            1 => Self::Hostile,
            _ => Self::Idle,
        }
    }
}

pub(crate) struct World {
    kind: Kind,
    installation: Installation,
    alice: Account,
    pair: Pair,
    /// Every process of a sandbox that was ever seen.
    seen: BTreeSet<Process>,
    /// Gateway tokens by the start that they belong to.
    tokens: BTreeMap<String, String>,
    /// A snapshot of each sandbox that is there, taken or put aside.
    snapshots: BTreeMap<String, String>,
}

impl World {
    pub(crate) async fn new(kind: Kind) -> Self {
        let setup = Setup::default()
            .config("sandbox.snapshots.max_count = 100")
            .leave_running();
        let setup = match kind {
            Kind::Plain => setup,
            Kind::Hostile => setup.hostile_guest(),
            Kind::Idle => setup.config("sandbox.idle_stop = \"1s\""),
        };
        let installation = setup.start().await;
        let alice = Account::admin(&installation, "alice").await;
        for role in Role::ALL {
            // The page that says that it is woken.
            alice.enter_host_at(&alice.host(role), 503).await;
            alice.stop(role).await;
        }
        let views = views(&alice).await;
        let id = |role: Role| of_role(&views, role)["id"].as_str().unwrap().to_owned();
        let stopped = Sandbox {
            may_be_stopped: true,
            ..Sandbox::default()
        };
        let pair = Pair {
            live: id(Role::Live),
            dev: id(Role::Dev),
            generation: 0,
            swaps: 0,
            sandboxes: [id(Role::Live), id(Role::Dev)]
                .into_iter()
                .map(|id| (id, stopped.clone()))
                .collect(),
        };
        Self {
            kind,
            installation,
            alice,
            pair,
            seen: BTreeSet::new(),
            tokens: BTreeMap::new(),
            snapshots: BTreeMap::new(),
        }
    }

    pub(crate) async fn take(&mut self, number: u64, step: &Step) {
        match step {
            Step::Whole(Operation::Visit(role)) => self.visit(*role).await,
            Step::Whole(operation) => {
                let label = operation.label(&number.to_string());
                let operation = match *operation {
                    Operation::Deafen(role) => {
                        self.deafen(role);
                        Operation::Restart(role)
                    }
                    operation => operation,
                };
                let order = self.ask(operation, &label);
                let answer = self.alice.client.try_send(order).await;
                self.learn(operation, &label, &answer.expect("an answer"));
            }
            Step::Cut { operations, after } => {
                // Labels first: a service may be there although nobody was told.
                let label =
                    |at: usize, operation: Operation| operation.label(&format!("{number}-{at}"));
                let mut orders = Vec::new();
                for (at, (operation, begin)) in operations.iter().enumerate() {
                    let label = label(at, *operation);
                    orders.push((self.ask(*operation, &label), *begin));
                    self.pair.may_have(*operation, &label);
                }
                // A second time, since each may have met what the others did.
                for (at, (operation, _)) in operations.iter().enumerate() {
                    if *operation != Operation::Swap {
                        self.pair.may_have(*operation, &label(at, *operation));
                    }
                }
                let client = &self.alice.client;
                let orders = orders.into_iter().map(async |(order, begin)| {
                    tokio::time::sleep(begin).await;
                    client.try_send(order).await
                });
                let orders = futures_util::future::join_all(orders);
                // Killed after that time, whatever was reached, with the callers still there.
                let mut orders = std::pin::pin!(orders);
                let _ = tokio::time::timeout(*after, &mut orders).await;
                self.installation.end(Signal::KILL);
                self.installation.spawn().await;
            }
        }
    }

    /// Somebody goes to a sandbox's page, and sees it whether it ran or not.
    async fn visit(&mut self, role: Role) {
        let id = match role {
            Role::Live => self.pair.live.clone(),
            Role::Dev => self.pair.dev.clone(),
        };
        let runs = self.pair.sandboxes[&id].may_run;
        let page = async || {
            let order = self.ask(Operation::Visit(role), "");
            self.alice.client.try_send(order).await.expect("a page")
        };
        let expected = if runs { 200 } else { 503 };
        let first = page().await;
        assert_eq!(first.status, expected, "{}", first.text());
        until("the woken sandbox", async || {
            (page().await.status == 200).then_some(())
        })
        .await;
        let start = text(&self.alice.sandbox(role).await["start_id"]);
        let sandbox = self.pair.sandboxes.get_mut(&id).unwrap();
        if !runs {
            sandbox.services.clear();
            sandbox.start = Some(start);
        }
        sandbox.may_run = true;
        sandbox.may_be_stopped = false;
    }

    /// Has the guests of a role's sandbox ignore SIGTERM from the next one on, or not any more.
    fn deafen(&self, role: Role) {
        let id = match role {
            Role::Live => &self.pair.live,
            Role::Dev => &self.pair.dev,
        };
        let sandbox = self.installation.data_dir().join("sandboxes").join(id);
        let workspace = sandbox.join("state/workspace");
        // Made by the first start.
        let Ok(owner) = fs::metadata(&workspace) else {
            return;
        };
        let file = workspace.join("deaf");
        if fs::remove_file(&file).is_err() {
            fs::write(&file, "").unwrap();
            chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
    }

    fn ask(&self, operation: Operation, label: &str) -> Ask {
        let post = |target: String| {
            Ask::new("POST", "localhost", &target).same_origin(&self.installation.control())
        };
        let lifecycle = |role: Role, what: &str| post(format!("/me/sandboxes/{role}/{what}"));
        match operation {
            Operation::Start(role) => lifecycle(role, "start"),
            Operation::Stop(role) => lifecycle(role, "stop"),
            Operation::Restart(role) => lifecycle(role, "restart"),
            Operation::Swap => post("/me/sandboxes/swap".to_owned()),
            Operation::Service(role) => lifecycle(role, "commands").json(&json!({
                "argv": ["sleep", "600"], "detach": true, "label": label,
            })),
            Operation::Command(role) => lifecycle(role, "commands").json(&json!({
                "argv": ["echo", "here"], "label": label,
            })),
            Operation::Long(role) => lifecycle(role, "commands").json(&json!({
                "argv": ["sleep", "700"], "label": label,
            })),
            Operation::Terminal(role) => lifecycle(role, "commands").json(&json!({
                "argv": ["sh"], "label": label, "terminal": { "cols": 80, "rows": 24 },
            })),
            Operation::Snapshot(role) => lifecycle(role, "snapshots").json(&json!({})),
            Operation::Restore(role) => {
                let id = match role {
                    Role::Live => &self.pair.live,
                    Role::Dev => &self.pair.dev,
                };
                // Without one there is nothing to restore: any id that is none.
                let none = "snp_00000000-0000-7000-8000-000000000000".to_owned();
                let snapshot = self.snapshots.get(id).unwrap_or(&none);
                lifecycle(role, &format!("snapshots/{snapshot}/restore")).json(&json!({}))
            }
            Operation::Clone => post("/me/sandboxes/clone".to_owned()).json(&json!({})),
            Operation::Visit(role) => Ask::new("GET", &self.alice.host(role), "/").navigation(),
            Operation::Deafen(_) => unreachable!("it is ordered as a restart"),
        }
    }

    /// What an answer says about the state.
    fn learn(&mut self, operation: Operation, label: &str, answer: &Response) {
        let pair = &mut self.pair;
        let id = |pair: &Pair, role: Role| match role {
            Role::Live => pair.live.clone(),
            Role::Dev => pair.dev.clone(),
        };
        let said = || format!("{operation:?}: {} {}", answer.status, answer.text());
        match operation {
            Operation::Swap => {
                if pair.sandboxes[&pair.dev].may_run {
                    assert_eq!(answer.status, 200, "{}", said());
                    std::mem::swap(&mut pair.live, &mut pair.dev);
                    pair.generation += 1;
                } else {
                    assert_eq!(answer.status, 409, "{}", said());
                }
            }
            Operation::Start(role) | Operation::Restart(role) => {
                assert_eq!(answer.status, 200, "{}", said());
                let id = id(pair, role);
                let sandbox = pair.sandboxes.get_mut(&id).unwrap();
                if matches!(operation, Operation::Restart(_)) || sandbox.may_be_stopped {
                    let before = sandbox.start.take();
                    sandbox.services.clear();
                    let now = answer.json()["start_id"].as_str().unwrap().to_owned();
                    assert_ne!(before.as_ref(), Some(&now), "{}", said());
                    sandbox.start = Some(now);
                }
                sandbox.may_run = true;
                sandbox.may_be_stopped = false;
            }
            Operation::Stop(role) => {
                assert_eq!(answer.status, 200, "{}", said());
                let id = id(pair, role);
                let stopped = Sandbox {
                    may_be_stopped: true,
                    ..Sandbox::default()
                };
                pair.sandboxes.insert(id, stopped);
            }
            Operation::Long(_) | Operation::Deafen(_) | Operation::Visit(_) => {
                unreachable!("it is not told by its answer")
            }
            Operation::Snapshot(role) => {
                let last = last(answer);
                assert_eq!(last["event"], "done", "{}", said());
                self.snapshots
                    .insert(id(pair, role), text(&last["snapshot"]["id"]));
            }
            Operation::Restore(_) | Operation::Clone => {
                let role = match operation {
                    Operation::Restore(role) => role,
                    _ => Role::Dev,
                };
                let id = id(pair, role);
                if operation == Operation::Restore(role) && !self.snapshots.contains_key(&id) {
                    assert!(matches!(answer.status, 400 | 404), "{}", said());
                    return;
                }
                let last = last(answer);
                assert_eq!(last["event"], "done", "{}", said());
                self.snapshots
                    .insert(id.clone(), text(&last["snapshot"]["id"]));
                let sandbox = pair.sandboxes.get_mut(&id).unwrap();
                assert_eq!(
                    last["sandbox"]["state"] == "running",
                    sandbox.may_run,
                    "{}",
                    said()
                );
                sandbox.services.clear();
                sandbox.start = last["sandbox"]["start_id"].as_str().map(str::to_owned);
            }
            Operation::Service(role) | Operation::Terminal(role) => {
                let id = id(pair, role);
                let sandbox = pair.sandboxes.get_mut(&id).unwrap();
                if sandbox.may_run {
                    assert_eq!(answer.status, 201, "{}", said());
                    sandbox.services.insert(label.to_owned(), true);
                } else {
                    assert_eq!(answer.status, 503, "{}", said());
                }
            }
            Operation::Command(role) => {
                let id = id(pair, role);
                let expected = if pair.sandboxes[&id].may_run {
                    200
                } else {
                    503
                };
                assert_eq!(answer.status, expected, "{}", said());
            }
        }
    }

    /// Everything that has to hold once nothing is under way.
    pub(crate) async fn check(&mut self) {
        if self.kind == Kind::Idle {
            for sandbox in self.pair.sandboxes.values_mut() {
                sandbox.may_idle();
            }
            until("the stop of what nothing happens in", async || {
                self.is_at_rest().await.then_some(())
            })
            .await;
        }
        let views = until("a state that lasts", async || {
            let views = views(&self.alice).await;
            // What a restore had stopped is started again.
            let may_rest = |view: &Value| {
                let sandbox = &self.pair.sandboxes[view["id"].as_str().unwrap()];
                view["state"] == "stopped" && sandbox.may_be_stopped
            };
            let settled = views
                .iter()
                .all(|view| view["state"] == "running" || may_rest(view));
            assert!(
                views.iter().all(|view| view["state"] != "failed"),
                "{views:#?}"
            );
            settled.then_some(views)
        })
        .await;
        self.check_pointers(&views);
        self.check_snapshots().await;
        for view in &views {
            self.check_sandbox(view);
            self.check_services(view).await;
            self.check_token(view).await;
        }
        self.check_processes(&views).await;
        assert!(!self.installation.log().contains("panicked"));
    }

    /// Whether each sandbox is stopped, or kept awake by a service.
    async fn is_at_rest(&self) -> bool {
        for view in views(&self.alice).await {
            let target = format!("/me/sandboxes/{}/commands", text(&view["role"]));
            let is_awake = async || {
                // It may have been stopped meanwhile.
                let listing = self.alice.control("GET", &target, None).await.json();
                let mut commands = listing["commands"].as_array().into_iter().flatten();
                commands.any(|command| command["argv"][1] == "600" && command["state"] == "running")
            };
            let rests = match view["state"].as_str() {
                Some("stopped") => true,
                Some("running") => is_awake().await,
                _ => false,
            };
            if !rests {
                return false;
            }
        }
        true
    }

    /// What is listed is on the disk and nothing else is, and the state itself is whole.
    async fn check_snapshots(&mut self) {
        for id in self.pair.sandboxes.keys() {
            let role = if *id == self.pair.live {
                Role::Live
            } else {
                Role::Dev
            };
            let dir = self.installation.data_dir().join("sandboxes").join(id);
            let target = format!("/me/sandboxes/{role}/snapshots");
            let (alice, kept) = (&self.alice, dir.join("snapshots"));
            let ids = until("snapshots as they are listed", async || {
                let listing = alice.control("GET", &target, None).await.expect(200).json();
                let listed = listing["snapshots"].as_array().unwrap();
                let listed: BTreeSet<String> = listed.iter().map(|one| text(&one["id"])).collect();
                let entries = fs::read_dir(&kept).into_iter().flatten().flatten();
                let there: BTreeSet<String> = entries
                    .map(|entry| entry.file_name().into_string().unwrap())
                    .collect();
                let whole = there.iter().all(|one| {
                    let dir = kept.join(one);
                    dir.join("state").is_dir() && dir.join("manifest.json").is_file()
                });
                (listing.get("under_way").is_none() && listed == there && whole).then_some(listed)
            })
            .await;
            match self.snapshots.get(id) {
                // Taken and answered: it is not lost, unless it goes by itself.
                Some(known) if ids.contains(known) => {}
                _ => {
                    self.snapshots.remove(id);
                    if let Some(latest) = ids.last() {
                        self.snapshots.insert(id.clone(), latest.clone());
                    }
                }
            }
        }
    }

    fn check_pointers(&mut self, views: &[Value]) {
        let pair = &mut self.pair;
        let live = of_role(views, Role::Live)["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let dev = of_role(views, Role::Dev)["id"].as_str().unwrap().to_owned();
        let generation = views[0]["generation"].as_u64().unwrap();
        assert_eq!(views[1]["generation"].as_u64(), Some(generation));
        assert!(
            (pair.generation..=pair.generation + pair.swaps).contains(&generation),
            "{generation} of {pair:#?}"
        );
        let swapped = (generation - pair.generation) % 2 == 1;
        let expected = if swapped {
            (&pair.dev, &pair.live)
        } else {
            (&pair.live, &pair.dev)
        };
        assert_eq!((&live, &dev), expected, "half a swap");
        pair.live = live;
        pair.dev = dev;
        pair.generation = generation;
        pair.swaps = 0;
    }

    fn check_sandbox(&mut self, view: &Value) {
        let id = view["id"].as_str().unwrap();
        let sandbox = self.pair.sandboxes.get_mut(id).unwrap();
        let runs = view["state"] == "running";
        assert!(
            if runs {
                sandbox.may_run
            } else {
                sandbox.may_be_stopped
            },
            "{view:#} against {sandbox:#?}"
        );
        let start = view["start_id"].as_str().map(str::to_owned);
        if let (true, Some(expected)) = (runs, &sandbox.start) {
            assert_eq!(start.as_ref(), Some(expected), "it was started anew");
        }
        if start != sandbox.start {
            // Another start has other services.
            for required in sandbox.services.values_mut() {
                *required = false;
            }
        }
        sandbox.may_run = runs;
        sandbox.may_be_stopped = !runs;
        sandbox.start = start;
        if !runs {
            sandbox.services.clear();
        }
    }

    async fn check_services(&mut self, view: &Value) {
        if view["state"] != "running" {
            return;
        }
        let sandbox = self
            .pair
            .sandboxes
            .get_mut(view["id"].as_str().unwrap())
            .unwrap();
        let role = view["role"].as_str().unwrap();
        let target = format!("/me/sandboxes/{role}/commands");
        let alice = &self.alice;
        let listing = until("the end of what nobody waits for", async || {
            let listing = alice.control("GET", &target, None).await.expect(200).json();
            let commands = listing["commands"].as_array().unwrap();
            let orphaned = commands
                .iter()
                .any(|command| command["argv"][1] == "700" && command["state"] == "running");
            (!orphaned).then_some(listing)
        })
        .await;
        let mut running = BTreeSet::new();
        for command in listing["commands"].as_array().unwrap() {
            let label = command["label"].as_str().unwrap_or_default();
            if command["argv"][0] == "echo" {
                continue;
            }
            if command["argv"][1] == "700" {
                // Its caller went with the hypervisor.
                assert_ne!(command["state"], "running", "orphaned: {command}");
                continue;
            }
            assert!(
                sandbox.services.contains_key(label),
                "nobody ordered {command}"
            );
            assert!(running.insert(label.to_owned()), "doubled: {command}");
            assert_eq!(command["state"], "running", "{command}");
        }
        for (label, required) in &sandbox.services {
            assert!(!required || running.contains(label), "{label} was lost");
        }
        sandbox.services = running.into_iter().map(|label| (label, true)).collect();
    }

    /// The token of the present start is good on its channel, and no other one is.
    async fn check_token(&mut self, view: &Value) {
        let Some(start) = view["start_id"].as_str() else {
            return;
        };
        let dir = self.installation.data_dir().join("run").join(start);
        if !self.tokens.contains_key(start)
            && let Some(token) = token_of(&dir)
        {
            self.tokens.insert(start.to_owned(), token);
        }
        let socket = dir.join("channel/channel.sock");
        for (of, token) in &self.tokens {
            let status = channel::get(&socket, "/provider/v1", Some(token))
                .await
                .status;
            let expected = if of == start { 200 } else { 401 };
            assert_eq!(
                status, expected,
                "the token of {of} on the channel of {start}"
            );
        }
    }

    async fn check_processes(&mut self, views: &[Value]) {
        let running: BTreeSet<String> = views
            .iter()
            .filter_map(|view| view["start_id"].as_str().map(str::to_owned))
            .collect();
        // A supervisor ends a moment after the answer that its sandbox is gone.
        let run = self.installation.data_dir().join("run");
        until("no directory without a sandbox", async || {
            // Made by the first start.
            let entries = fs::read_dir(&run).into_iter().flatten().flatten();
            let dirs: BTreeSet<String> = entries
                .map(|entry| entry.file_name().into_string().unwrap())
                .collect();
            (dirs == running).then_some(())
        })
        .await;
        let supervisors = self.installation.supervisors();
        assert_eq!(supervisors.len(), running.len(), "{supervisors:?}");
        let mut present = BTreeSet::new();
        for supervisor in supervisors {
            present.insert(supervisor);
            present.extend(supervisor.descendants());
        }
        let before = std::mem::replace(&mut self.seen, present.clone());
        until(
            "the end of what belonged to starts that are gone",
            async || {
                // A runner may have ended, and a process be nobody's descendant any more, only
                // if it is dead.
                before
                    .difference(&present)
                    .all(|process| !process.is_alive())
                    .then_some(())
            },
        )
        .await;
        // A copier may still remove what a kill left half done.
        until("no process that nobody knows", async || {
            strays(&self.installation, &present)
                .is_empty()
                .then_some(())
        })
        .await;
    }

    /// Stops everything and sees that nothing is left.
    pub(crate) async fn finish(mut self) {
        for role in Role::ALL {
            self.alice.stop(role).await;
            let id = match role {
                Role::Live => &self.pair.live,
                Role::Dev => &self.pair.dev,
            };
            let sandbox = self.pair.sandboxes.get_mut(id).unwrap();
            *sandbox = Sandbox {
                may_be_stopped: true,
                ..Sandbox::default()
            };
        }
        self.check().await;
        assert!(self.seen.is_empty(), "{:?}", self.seen);
    }
}

/// The last line of an answer that tells how copying goes.
fn last(answer: &Response) -> Value {
    let text = answer.text();
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

async fn views(account: &Account) -> Vec<Value> {
    let listing = account
        .control("GET", "/me/sandboxes", None)
        .await
        .expect(200)
        .json();
    listing["sandboxes"].as_array().unwrap().clone()
}

fn of_role(views: &[Value], role: Role) -> &Value {
    views
        .iter()
        .find(|view| view["role"] == role.as_str())
        .unwrap()
}

fn supervisor_of(dir: &std::path::Path) -> Option<Process> {
    let record: Value = serde_json::from_slice(&fs::read(dir.join("start.json")).ok()?).ok()?;
    let pid = u32::try_from(record["process"]["pid"].as_u64()?).ok()?;
    Process::of(pid)
}

/// The gateway token of a start, where this identity may read a guest's environment.
fn token_of(dir: &std::path::Path) -> Option<String> {
    let name = b"CHOIR_PROVIDER_GATEWAY_TOKEN=";
    supervisor_of(dir)?
        .descendants()
        .into_iter()
        .find_map(|process| {
            let environment = process.environment();
            let variable = environment
                .split(|byte| *byte == 0)
                .find_map(|variable| variable.strip_prefix(name.as_slice()))?;
            String::from_utf8(variable.to_vec()).ok()
        })
}

/// Supervisors and copiers of this installation that no record names: each holds a directory of
/// it open. Seen where this identity may look at others' descriptors.
fn strays(installation: &Installation, known: &BTreeSet<Process>) -> Vec<Process> {
    let data = installation.data_dir();
    let holds = |pid: u32| {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|target| target.starts_with(&data))
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.trim() == "supervisor")
        })
        .filter(|pid| holds(*pid))
        .filter_map(Process::of)
        .filter(|process| !known.contains(process))
        .collect()
}
