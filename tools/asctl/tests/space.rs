// SPDX-License-Identifier: GPL-2.0

//! asctl on a kernel that has address spaces. To run these in the test VM, take asctl and the
//! program that `cargo test -p asctl --test space --no-run` names along:
//!
//!     scripts/vm --with ASCTL:/bin/asctl --with PROGRAM:/bin/asctl-test -- asctl-test --ignored

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{json, Value};

/// The built one, or in a VM that of PATH.
fn program() -> &'static str {
    let built = env!("CARGO_BIN_EXE_asctl");
    if Path::new(built).exists() {
        built
    } else {
        "asctl"
    }
}

fn asctl(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(program())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who does not read its input may be gone.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn ok(args: &[&str]) -> Vec<u8> {
    let output = asctl(args, b"");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    output.stdout
}

fn json(args: &[&str]) -> Value {
    serde_json::from_slice(&ok(args)).unwrap()
}

fn refused(args: &[&str], words: &str) {
    let output = asctl(args, b"");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    assert!(stderr.contains(words), "{args:?}: {stderr}");
}

/// A folder of its own for each test.
fn folder(test: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("asctl-{}-{test}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// A process that holds the space of a spec.
struct Holder {
    child: Child,
    space: String,
}

impl Holder {
    fn new(test: &str, spec: &str) -> Self {
        let spec_path = folder(test).join("spec.toml");
        fs::write(&spec_path, spec).unwrap();
        let child = Command::new(program())
            .arg("exec")
            .arg(&spec_path)
            .args(["--", "sleep", "60"])
            .spawn()
            .unwrap();
        let pid = child.id();
        // It is a copy of this program, then asctl, and sleep when the space is made.
        let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        for _ in 0..6000 {
            if comm() == "sleep\n" {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        let fds = asfd::process::spaces(pid).unwrap();
        assert_eq!(fds.len(), 1, "{} holds no space", comm());
        let space = format!("{pid}:{}", fds[0]);
        Holder { child, space }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SPEC: &str = r#"
    [[range]]
    anonymous = true
    len = "8K"

    [[range]]
    memfd = "ram"
    len = "1M"
    at = 0

    [[range]]
    file = "data"
    offset = 0x1000
    at = "0x200000"
    private = true
"#;

fn holder(test: &str) -> Holder {
    let mut data = vec![b'a'; 4096];
    data.extend([b'b'; 4096]);
    data.extend(b"tail");
    fs::write(folder(test).join("data"), data).unwrap();
    Holder::new(test, SPEC)
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn ls_finds_the_space_of_exec() {
    let holder = holder("ls");
    let pid = holder.child.id();
    let list = json(&["ls", "--json"]);
    let rows = list["spaces"].as_array().unwrap();
    let row = rows.iter().find(|row| row["pid"] == pid).unwrap();
    assert_eq!(row["command"], "sleep");
    assert_eq!(row["mappings"], 3);
    assert_eq!(row["mapped"], (1 << 20) + 8192 + 8192);
    assert_eq!(row["resident"], 0);
    assert_eq!(row["windows"], 0);
    assert_eq!((&row["start"], &row["prot"]), (&json!(0), &json!("rw")));
    assert!(row["size"].as_u64().unwrap() > 1 << 40);
    assert_eq!(row["rights"], "map,unmap,change,seal,view,query,kvm");
    assert_eq!(row["seals"], "-");

    let table = String::from_utf8(ok(&["ls", "-p", &pid.to_string()])).unwrap();
    assert_eq!(table.lines().count(), 2, "{table}");
    let line = table.lines().nth(1).unwrap();
    assert!(line.contains(" sleep "), "{table}");
    assert!(line.contains(" mucsvqk "), "{table}");
    assert!(line.len() <= 80, "{table}");
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn maps_shows_what_the_spec_says() {
    let holder = holder("maps");
    let maps = json(&["maps", "--json", &holder.space]);
    let maps = maps["mappings"].as_array().unwrap();
    assert_eq!(maps.len(), 3, "{maps:?}");
    assert_eq!(
        maps[0],
        json!({"start": 0, "end": 1 << 20, "size": 1 << 20, "page": 4096, "prot": "rw",
               "type": "shared", "offset": 0, "name": "memfd:ram"})
    );
    assert_eq!(maps[1]["start"], 1 << 20);
    assert_eq!(maps[1]["size"], 8192);
    assert_eq!(maps[1]["name"], "[anon]");
    assert_eq!(maps[2]["start"], 0x200000);
    assert_eq!(maps[2]["size"], 8192);
    assert_eq!(maps[2]["offset"], 4096);
    assert_eq!(maps[2]["prot"], "r-");
    assert_eq!(maps[2]["type"], "private");
    assert!(maps[2]["name"].as_str().unwrap().ends_with("/data"));
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn read_and_write() {
    let holder = holder("read");
    let space = holder.space.as_str();
    assert_eq!(ok(&["read", space, "0x200ffe", "6"]), b"bbtail");

    let written = asctl(&["write", space, "4K"], b"hello");
    assert!(written.status.success());
    assert_eq!(ok(&["read", space, "4095", "7"]), b"\0hello\0");
    let dump = String::from_utf8(ok(&["read", "--hex", space, "4K", "5"])).unwrap();
    assert!(dump.starts_with("00001000  68 65 6c 6c 6f "), "{dump}");

    // What is there comes out, then the error.
    let output = asctl(&["read", space, "0x201fff", "2"], b"");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout.len(), 1);
    assert!(String::from_utf8(output.stderr).unwrap().contains("EIO"));

    let output = asctl(&["write", space, "0x200000"], b"x");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("EACCES"));
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn map_and_unmap() {
    let holder = holder("map");
    let space = holder.space.as_str();
    let addr = ok(&["map", space, "--memfd", "x", "--len", "4K"]);
    assert_eq!(addr, b"0x102000\n");
    let args = ["map", space, "--anonymous", "--len", "4K"];
    let addr = ok(&[&args[..], &["--hint", "1G"]].concat());
    assert_eq!(addr, b"0x40000000\n");
    refused(&[&args[..], &["--at", "0"]].concat(), "EEXIST");

    asctl(&["write", space, "0"], b"old");
    ok(&[&args[..], &["--replace", "0"]].concat());
    assert_eq!(ok(&["read", space, "0", "3"]), [0, 0, 0]);

    ok(&["unmap", space, "0", "4K"]);
    refused(&["read", space, "0", "1"], "EIO");
    refused(&["unmap", space, "1", "4K"], "EINVAL");

    let file = folder("map").join("data");
    let file = file.to_str().unwrap();
    ok(&[
        "map", space, "--file", file, "--len", "4K", "--prot", "rw", "--at", "0",
    ]);
    asctl(&["write", space, "0"], b"A");
    assert_eq!(fs::read(file).unwrap()[0], b'A');
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn exec_ends_with_the_status_of_the_command() {
    let exec = |command: &[&str]| {
        let args = [&["exec", "/dev/null", "--"], command].concat();
        let output = asctl(&args, b"");
        (output.status.code().unwrap(), output.stdout)
    };
    assert_eq!(exec(&["sh", "-c", "exit 7"]).0, 7);
    assert_eq!(exec(&["/nowhere"]).0, 127);
    assert_eq!(exec(&["/"]).0, 126);
    let (_, link) = exec(&["sh", "-c", "readlink /proc/self/fd/$ASFD"]);
    assert_eq!(link, b"anon_inode:[address_space]\n");
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn an_inherited_space_needs_no_process() {
    let command = format!("{} info --json $ASFD", program());
    let info = json(&["exec", "/dev/null", "--", "sh", "-c", &command]);
    assert_eq!(info["mappings"], 0);
    assert_eq!(info["prot"], "rw");
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn a_spec_that_cannot_be_done_says_which_range() {
    let spec = folder("bad").join("spec.toml");
    let text = "[[range]]\nanonymous = true\nlen = 1\nat = 0\n\
                [[range]]\nanonymous = true\nlen = 1\nat = 0\n";
    fs::write(&spec, text).unwrap();
    let spec = spec.to_str().unwrap();
    refused(&["exec", spec, "--", "true"], "range 2: cannot map");
    fs::write(spec, "[[range]]\nfile = 'gone'\n").unwrap();
    refused(&["exec", spec, "--", "true"], "range 1: cannot open");
}

/// What a shell with a view of the space prints. `view` are the options.
fn in_view(space: &str, view: &[&str], script: &str) -> String {
    // The VM has asctl on its path; the built one is put there.
    let folder = Path::new(program()).parent().unwrap().to_str().unwrap();
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
    let script = format!("PATH={path}; {script}");
    let args = [&["view", space], view, &["--", "sh", "-c", &script]].concat();
    String::from_utf8(ok(&args)).unwrap()
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn a_view_shows_its_window_and_takes_no_edits() {
    let holder = holder("view");
    let space = holder.space.as_str();
    asctl(&["write", space, "0x1000"], b"hello");

    let window = ["--window", "4K", "64K", "--prot", "r", "--rights", "query"];
    assert_eq!(in_view(space, &window, "asctl read $ASFD 0 5"), "hello");
    let info = in_view(space, &window, "asctl info --json $ASFD");
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(
        (&info["start"], &info["end"]),
        (&json!(0x1000), &json!(0x11000))
    );
    assert_eq!(
        (&info["rights"], &info["prot"]),
        (&json!("query"), &json!("r-"))
    );
    assert_eq!(info["mapped"], 0x10000);

    let maps = in_view(space, &window, "asctl maps $ASFD");
    let lines: Vec<_> = maps.lines().collect();
    assert_eq!(lines.len(), 3, "{maps}");
    let caption = "from 0x1000 to 0x11000, prot r-, rights query, seals -";
    assert!(lines[0].ends_with(caption), "{maps}");
    assert!(lines[2].trim_start().starts_with("0x0 0x10000 "), "{maps}");
    let maps = in_view(space, &window, "asctl maps --json $ASFD");
    let maps: Value = serde_json::from_str(&maps).unwrap();
    assert_eq!(maps["space"], info);

    for (edit, words) in [
        ("unmap $ASFD 0 4K", "lacks the right to unmap"),
        ("map $ASFD --anonymous --len 4K", "lacks the right to map"),
        ("protect $ASFD 0 4K r", "lacks the right to change"),
        ("advise $ASFD 0 4K cold", "lacks the right to change"),
        ("seal $ASFD map", "lacks the right to seal"),
        ("view $ASFD true", "lacks the right to view"),
        ("write $ASFD 0", "EACCES"),
        ("read $ASFD 64K 1", "ends at 0x10000"),
    ] {
        let said = in_view(
            space,
            &window,
            &format!("asctl {edit} 2>&1 </proc/version; echo $?"),
        );
        assert!(
            said.contains(words) && said.ends_with("1\n"),
            "{edit}: {said}"
        );
    }
    assert_eq!(ok(&["read", space, "0x1000", "5"]), b"hello");
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn the_command_of_view_holds_the_view_alone() {
    let holder = holder("alone");
    // The shell has the space as an inherited descriptor, and hands on a view.
    let count = "ls -l /proc/self/fd | grep -c address_space";
    let script = format!("asctl view $ASFD --rights none -- sh -c '{count}; echo $ASFD'");
    let said = in_view(&holder.space, &[], &script);
    let numbers: Vec<_> = said.lines().collect();
    assert_eq!(numbers.len(), 2, "{said}");
    assert_eq!(numbers[0], "1", "{said}");

    // As it is listed: two descriptors of one space while it runs.
    let view = Command::new(program())
        .args(["view", &holder.space, "--window", "1M", "1M"])
        .args(["--rights", "none", "--prot", "r", "--", "sleep", "60"])
        .spawn()
        .unwrap();
    let pid = view.id();
    let view = Holder {
        child: view,
        space: String::new(),
    };
    let comm = || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    for _ in 0..6000 {
        if comm() == "sleep\n" {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let pids = format!("{pid},{}", holder.child.id());
    let list = json(&["ls", "--json", "--pid", &pids]);
    let rows = list["spaces"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert_eq!(rows[0]["id"], rows[1]["id"]);
    assert_eq!(
        (&rows[0]["start"], &rows[0]["size"]),
        (&json!(1 << 20), &json!(1 << 20))
    );
    assert_eq!(
        (&rows[0]["rights"], &rows[0]["prot"]),
        (&json!("-"), &json!("r-"))
    );
    assert_eq!(
        (&rows[0]["mappings"], &rows[1]["mappings"]),
        (&json!(1), &json!(3))
    );
    drop(view);
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn view_ends_with_the_status_of_the_command() {
    let holder = holder("status");
    let space = holder.space.as_str();
    let status = |command: &str| {
        let output = asctl(&["view", space, "--", command], b"");
        output.status.code().unwrap()
    };
    assert_eq!(status("true"), 0);
    assert_eq!(status("false"), 1);
    assert_eq!(status("/nowhere"), 127);
    assert_eq!(status("/"), 126);
    refused(
        &["view", space, "--window", "1", "4K", "true"],
        "page boundaries",
    );
    refused(&["view", space, "--window", "15E", "4K", "true"], "ERANGE");
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn protection_and_advice() {
    let holder = holder("protect");
    let space = holder.space.as_str();
    asctl(&["write", space, "0"], b"hello");
    ok(&["protect", space, "0", "4K", "r"]);
    let output = asctl(&["write", space, "0"], b"x");
    assert!(String::from_utf8(output.stderr).unwrap().contains("EACCES"));
    let maps = json(&["maps", "--json", space]);
    assert_eq!(maps["mappings"].as_array().unwrap().len(), 4);
    assert_eq!(maps["mappings"][0]["prot"], "r-");
    ok(&["protect", space, "0", "4K", "none"]);
    refused(&["read", space, "0", "1"], "EACCES");
    ok(&["protect", space, "0", "4K", "rw"]);
    refused(
        &["protect", space, "16M", "4K", "r"],
        "not all of the range is mapped",
    );
    refused(&["protect", space, "1", "4K", "r"], "page boundary");

    let resident = || {
        json(&["info", "--json", space])["resident"]
            .as_u64()
            .unwrap()
    };
    ok(&["advise", space, "0", "1M", "populate_read"]);
    assert_eq!(resident(), 1 << 20);
    ok(&["advise", space, "0", "1M", "dontneed"]);
    assert_eq!(resident(), 0);
    assert_eq!(ok(&["read", space, "0", "5"]), b"hello");
    ok(&["advise", space, "0", "4K", "remove"]);
    assert_eq!(ok(&["read", space, "0", "5"]), [0; 5]);
}

#[test]
#[ignore = "needs a kernel with address spaces"]
fn seals_are_shown_and_hold() {
    let holder = holder("seal");
    let space = holder.space.as_str();
    ok(&["seal", space, "unmap"]);
    ok(&["seal", space, "map,change"]);
    assert_eq!(
        json(&["info", "--json", space])["seals"],
        "map,unmap,change"
    );
    let pid = holder.child.id().to_string();
    let list = String::from_utf8(ok(&["ls", "-p", &pid])).unwrap();
    assert!(list.lines().nth(1).unwrap().contains(" muc "), "{list}");
    let maps = String::from_utf8(ok(&["maps", space])).unwrap();
    assert!(
        maps.lines()
            .next()
            .unwrap()
            .ends_with("seals map,unmap,change"),
        "{maps}"
    );

    refused(
        &["unmap", space, "0", "4K"],
        "the space is sealed against unmap",
    );
    let map = ["map", space, "--anonymous", "--len", "4K"];
    refused(&map, "the space is sealed against map");
    refused(&["protect", space, "0", "4K", "r"], "sealed against change");
    refused(
        &["advise", space, "0", "4K", "cold"],
        "sealed against change",
    );
    assert!(asctl(&["write", space, "0"], b"x").status.success());
    ok(&["seal", space, "seal"]);
    refused(&["seal", space, "map"], "sealed against seal");
}
