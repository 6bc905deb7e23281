//! An inbox against a model of it: random operations by a backend and from the user's devices, which come and go. After each
//! of them the list, the counts and what every device knows are what the model says.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use crate::api::Api;
use crate::load::Seeded;
use crate::server::TestServer;
use crate::socket::Socket;

const STEPS: u64 = 160;
const DEVICES: usize = 3;

/// The rows that are to be seen, by their `seq`.
type Rows = BTreeMap<i64, Row>;

#[derive(Debug, Clone, PartialEq)]
struct Row {
    id: String,
    read: bool,
    /// Null without one.
    group: Value,
}

/// An inbox, as simply as can be.
#[derive(Default)]
struct Model {
    rev: i64,
    rows: Rows,
    /// By collapse or group key the newest row that had it.
    keys: BTreeMap<String, i64>,
    /// Who stands behind a group's row, in the order they last acted; a push without an actor is nobody.
    actors: BTreeMap<i64, Vec<Option<String>>>,
}

impl Model {
    fn insert(&mut self, id: &str, key: Option<&str>, group: Value) -> i64 {
        self.rev += 1;
        self.rows.insert(self.rev, Row { id: id.to_owned(), read: false, group });
        self.keys.extend(key.map(|key| (key.to_owned(), self.rev)));
        self.rev
    }

    /// The unread row with a key.
    fn open(&self, key: &str) -> Option<i64> {
        self.keys.get(key).copied().filter(|seq| self.rows.get(seq).is_some_and(|row| !row.read))
    }

    fn collapse(&mut self, id: &str, key: &str) {
        if let Some(seq) = self.open(key) {
            self.rows.remove(&seq);
            self.rev += 1;
        }
        self.insert(id, Some(key), Value::Null);
    }

    fn group(&mut self, id: &str, key: &str, actor: Option<String>) {
        let Some(seq) = self.open(key) else {
            let seq = self.insert(id, Some(key), Value::Null);
            self.actors.insert(seq, vec![actor]);
            self.regroup(seq, key);
            return;
        };
        let actors = self.actors.get_mut(&seq).expect("it is there");
        actors.retain(|known| actor.is_none() || *known != actor);
        actors.push(actor);
        self.rev += i64::from(self.regroup(seq, key));
    }

    /// Sets what a row says of its group, and returns whether that is new.
    fn regroup(&mut self, seq: i64, key: &str) -> bool {
        let actors = &self.actors[&seq];
        let named: Vec<_> = actors.iter().rev().flatten().take(3).collect();
        let group = json!({"key": key, "count": actors.len(), "actors": named});
        let row = self.rows.get_mut(&seq).expect("it is there");
        std::mem::replace(&mut row.group, group.clone()) != group
    }

    fn ungroup(&mut self, key: &str, actor: &str) -> bool {
        let Some(seq) = self.keys.get(key).copied().filter(|seq| self.rows.contains_key(seq)) else { return false };
        let actors = self.actors.get_mut(&seq).expect("it is there");
        let before = actors.len();
        actors.retain(|known| known.as_deref() != Some(actor));
        if actors.len() == before {
            return false;
        }
        if actors.is_empty() {
            self.rows.remove(&seq);
        } else {
            self.regroup(seq, key);
        }
        self.rev += 1;
        true
    }

    fn retract(&mut self, id: &str) {
        let before = self.rows.len();
        self.rows.retain(|_, row| row.id != id);
        self.rev += i64::from(self.rows.len() < before);
    }

    fn mark(&mut self, read: bool, selection: &Value) {
        self.rev += i64::from(mark(&mut self.rows, read, selection));
    }

    fn unread(&self) -> usize {
        self.rows.values().filter(|row| !row.read).count()
    }
}

/// Marks what `{ids}`, `{upTo}` or `{all}` selects, and returns whether anything changed.
fn mark(rows: &mut Rows, read: bool, selection: &Value) -> bool {
    let ids = selection["ids"].as_array();
    let upto = selection["upTo"].as_i64();
    let mut changed = false;
    for (seq, row) in rows {
        let selected = ids.is_none_or(|ids| ids.contains(&json!(row.id))) && upto.is_none_or(|upto| *seq <= upto);
        changed |= selected && row.read != read;
        row.read = if selected { read } else { row.read };
    }
    changed
}

/// One of the user's devices: what it was told, and how far.
#[derive(Default)]
struct Device {
    rows: Rows,
    rev: i64,
    epoch: String,
    socket: Option<Socket>,
    /// What it got since its login.
    got: HashSet<String>,
    acked: i64,
}

impl Device {
    async fn login(&mut self, server: &TestServer) {
        let mut socket = server.connect().await;
        let login = json!(["user_login", {"tokenId": "1", "rev": self.rev, "epoch": self.epoch, "batch": true}]);
        let known = if self.epoch.is_empty() { json!(["user_login", {"tokenId": "1", "batch": true}]) } else { login };
        self.epoch = socket.login_with(&known.to_string()).await.epoch;
        self.got.clear();
        self.socket = Some(socket);
        while !self.hear().await {}
    }

    /// Takes the next event, and says whether it was the end of a replay.
    async fn hear(&mut self) -> bool {
        let socket = self.socket.as_mut().expect("it is there");
        let event = socket.event().await;
        let value = event.value();
        match event.name.as_str() {
            "receive_messages" => value.as_array().expect("a list").iter().for_each(|message| self.take(message)),
            "inbox_changed" => self.change(&value),
            "replay_complete" => self.rev = value["rev"].as_i64().expect("a number"),
            _ => panic!("{event:?}"),
        }
        // Long before its window is full.
        if self.rev >= self.acked + 16 {
            self.ack().await;
        }
        event.name == "replay_complete"
    }

    async fn ack(&mut self) {
        self.acked = self.rev;
        self.socket.as_mut().expect("it is there").ack_up_to(self.rev).await;
    }

    fn take(&mut self, message: &Value) {
        let (id, seq) =
            (message["id"].as_str().expect("a text").to_owned(), message["seq"].as_i64().expect("a number"));
        assert!(self.got.insert(id.clone()), "twice: {message}");
        let read = message["read"].as_bool().expect("true or false");
        self.rows.insert(seq, Row { id, read, group: message["group"].clone() });
        self.rev = self.rev.max(seq);
    }

    fn change(&mut self, change: &Value) {
        let rev = change["rev"].as_i64().expect("a number");
        assert!(rev > self.rev, "after {}: {change}", self.rev);
        self.rev = rev;
        if let Some(upto) = change["readUpTo"].as_i64() {
            mark(&mut self.rows, true, &json!({"upTo": upto}));
        }
        for changed in change["changes"].as_array().into_iter().flatten() {
            if changed["retracted"] == true {
                self.rows.retain(|_, row| changed["id"] != row.id);
            }
            for row in self.rows.values_mut().filter(|row| changed["id"] == row.id) {
                if let Some(read_at) = changed.get("readAt") {
                    row.read = read_at.is_string();
                }
                if let Some(group) = changed.get("group") {
                    row.group = group.clone();
                }
            }
        }
    }

    /// Marks rows; it is answered instead of told.
    async fn mark(&mut self, read: bool, selection: &Value) -> Value {
        let event = if read { "read" } else { "unread" };
        let answer = self.socket.as_mut().expect("it is there").call(&json!([event, selection]).to_string()).await;
        mark(&mut self.rows, read, selection);
        self.rev = answer["rev"].as_i64().expect("a number");
        answer
    }
}

/// What a list shows.
fn listed(page: &Value) -> Rows {
    let items = page["items"].as_array().expect("a list").iter().map(|item| {
        let id = item["id"].as_str().expect("a text").to_owned();
        (
            item["seq"].as_i64().expect("a number"),
            Row { id, read: item["readAt"].is_string(), group: item["group"].clone() },
        )
    });
    items.collect()
}

/// Ids of some of the rows, and sometimes of one that is nobody's.
fn some_ids(model: &Model, chance: &mut Seeded) -> Value {
    let mut ids: Vec<_> = model.rows.values().filter(|_| chance.percent(20)).map(|row| row.id.clone()).collect();
    if ids.is_empty() || chance.percent(10) {
        ids.push("00000000-0000-7000-8000-000000000000".to_owned());
    }
    json!({"ids": ids})
}

fn selection(model: &Model, chance: &mut Seeded) -> Value {
    match chance.below(5) {
        0 => json!({"all": true}),
        1 | 2 => json!({"upTo": chance.below(model.rev.unsigned_abs() + 2)}),
        _ => some_ids(model, chance),
    }
}

/// What a backend does; the model follows.
async fn backend(api: &Api, model: &mut Model, chance: &mut Seeded) {
    let push = async |options: Value| {
        let mut body = json!({"tokens": "1", "entityType": "kind"});
        body.as_object_mut().expect("an object").extend(options.as_object().expect("an object").clone());
        api.push_as(body).await["id"].as_str().expect("a text").to_owned()
    };
    let mark = async |kind: &str, selection: &Value| {
        api.ask("POST", &format!("/api/inbox/1/{kind}"), selection).await;
    };
    let key = format!("key-{}", chance.below(2));
    let actor = format!("actor-{}", chance.below(5));
    match chance.below(12) {
        0..3 => {
            model.insert(&push(json!({})).await, None, Value::Null);
        }
        3..5 => model.collapse(&push(json!({"collapseKey": &key})).await, &key),
        5 => {
            let group = format!("group-{key}");
            model.group(&push(json!({"groupKey": &group})).await, &group, None);
        }
        6..8 => {
            let group = format!("group-{key}");
            model.group(&push(json!({"groupKey": &group, "actor": &actor})).await, &group, Some(actor));
        }
        8 => {
            let path = format!("/api/groups/1/group-{key}/actors/{actor}");
            let removed = api.ask("DELETE", &path, &Value::Null).await["removed"].clone();
            assert_eq!(removed, json!(model.ungroup(&format!("group-{key}"), &actor)));
        }
        9 => {
            let Some(id) = model.rows.values().filter(|_| chance.percent(30)).map(|row| row.id.clone()).next() else {
                return;
            };
            assert_eq!(api.ask("DELETE", &format!("/api/notifications/{id}"), &Value::Null).await["retracted"], 1);
            model.retract(&id);
        }
        10 => {
            let selection = selection(model, chance);
            mark("read", &selection).await;
            model.mark(true, &selection);
        }
        _ => {
            let selection = some_ids(model, chance);
            mark("unread", &selection).await;
            model.mark(false, &selection);
        }
    }
}

#[tokio::test]
async fn whatever_is_done_to_an_inbox_every_view_of_it_agrees() {
    let mut chance = Seeded::announced();
    let server = TestServer::with(&["--socket-rate=0", "--page=1000", "--ring=4"]).await;
    let api = server.api();
    let mut model = Model::default();
    let mut devices: Vec<Device> = Vec::new();
    for _ in 0..DEVICES {
        let mut device = Device::default();
        device.login(&server).await;
        devices.push(device);
    }
    for step in 0..STEPS {
        let which = usize::try_from(chance.below(DEVICES as u64)).unwrap();
        let device = &mut devices[which];
        match chance.below(10) {
            // The first one stays.
            0 if which > 0 => match device.socket.take() {
                Some(_) => {}
                None => device.login(&server).await,
            },
            1 | 2 if device.socket.is_some() => {
                let selection = selection(&model, &mut chance);
                let answer = device.mark(true, &selection).await;
                model.mark(true, &selection);
                assert_eq!(answer, json!({"ok": true, "rev": model.rev, "unread": model.unread()}), "step {step}");
            }
            3 if device.socket.is_some() => {
                let selection = some_ids(&model, &mut chance);
                let answer = device.mark(false, &selection).await;
                model.mark(false, &selection);
                assert_eq!(answer, json!({"ok": true, "rev": model.rev, "unread": model.unread()}), "step {step}");
            }
            4 if device.socket.is_some() => device.ack().await,
            _ => backend(&api, &mut model, &mut chance).await,
        }
        let page = api.list("1", "limit=1000").await;
        assert_eq!(listed(&page), model.rows, "step {step}");
        assert_eq!((&page["rev"], &page["unread"]), (&json!(model.rev), &json!(model.unread())), "step {step}");
        let unread = listed(&api.list("1", "limit=1000&unread=true").await);
        let expected: Rows = model.rows.clone().into_iter().filter(|(_, row)| !row.read).collect();
        assert_eq!(unread, expected, "step {step}");
        let counts = api.ask("GET", "/api/inbox/1/counts", &Value::Null).await;
        assert_eq!(counts["unread"], json!(model.unread()), "step {step}");
        for device in devices.iter_mut().filter(|device| device.socket.is_some()) {
            while device.rev < model.rev {
                device.hear().await;
            }
            assert_eq!((device.rev, &device.rows), (model.rev, &model.rows), "step {step}");
        }
    }
    for device in devices.iter_mut().filter(|device| device.socket.is_none()) {
        device.login(&server).await;
        assert_eq!((device.rev, &device.rows), (model.rev, &model.rows), "at the end");
    }
    server.table().expect_sound().await;
}
