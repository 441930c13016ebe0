// SPDX-License-Identifier: GPL-2.0

//! What asctl says and returns when it cannot do what it was asked for; any kernel will do.

use std::fs;
use std::process::{Command, Output, Stdio};

fn asctl(args: &[&str]) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_asctl"))
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Fails with this status, and one line that has these words.
fn refused(args: &[&str], status: i32, words: &str) {
    let (code, _, stderr) = asctl(args);
    assert_eq!(code, status, "{args:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("asctl: "), "{args:?}: {stderr}");
    assert!(stderr.contains(words), "{args:?}: {stderr}");
}

#[test]
fn help_teaches() {
    for command in [
        "exec", "ls", "maps", "info", "read", "write", "map", "unmap", "protect", "advise", "seal",
        "view",
    ] {
        let (code, stdout, _) = asctl(&[command, "--help"]);
        assert_eq!(code, 0);
        assert!(stdout.contains("Examples:"), "{command}");
        assert!(stdout.contains(&format!("  asctl {command} ")), "{command}");
    }
}

#[test]
fn wrong_usage_is_2() {
    refused(&["frob"], 2, "unrecognized subcommand 'frob'");
    refused(&["maps", "x:3"], 2, "want PID:FD");
    refused(&["read", "1:3", "0"], 2, "<LEN>");
    refused(&["read", "1:3", "0", "4Q"], 2, "not a number");
    refused(&["map", "1:3"], 2, "--anonymous");
    refused(
        &["protect", "1:3", "0", "4K", "x"],
        2,
        "want r, w, rw or none",
    );
    refused(&["advise", "1:3", "0", "4K", "x"], 2, "populate_read");
    let known = "\"x\" is none of map, unmap, change, seal, none";
    refused(&["seal", "1:3", "map,x"], 2, known);
    refused(
        &["view", "1:3", "--rights", "x", "true"],
        2,
        "is none of map",
    );
    refused(
        &["view", "1:3", "--window", "0", "--", "true"],
        2,
        "2 values",
    );
    let (code, _, stderr) = asctl(&[]);
    assert_eq!(code, 2);
    assert!(stderr.contains("Usage:"));
}

#[test]
fn failure_is_1() {
    refused(&["maps", "4294967295:3"], 1, "no such process");
    refused(&["info", "999"], 1, "EBADF: not an open descriptor");
    refused(&["exec", "/nowhere", "true"], 1, "cannot read /nowhere");
    refused(&["ls", "--pid", "4294967295"], 1, "no such process");
}

#[test]
fn what_is_not_a_space_is_named_so() {
    // Standard input of asctl.
    refused(&["maps", "0"], 1, "not an address space");
    refused(&["view", "0", "true"], 1, "not an address space");
    refused(&["seal", "0", "map"], 1, "not an address space");
}

#[test]
fn ls_has_the_same_columns_in_both_forms() {
    let (code, table, _) = asctl(&["ls"]);
    assert_eq!(code, 0);
    let header = table.lines().next().unwrap();
    let columns: Vec<_> = header.split_whitespace().collect();
    assert_eq!(
        columns,
        [
            "PID", "COMMAND", "FD", "ID", "START", "SIZE", "PROT", "RIGHTS", "SEALS", "MAPPINGS",
            "MAPPED", "RESIDENT", "WINDOWS"
        ]
    );
    let (code, json, _) = asctl(&["ls", "--json"]);
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    for space in json["spaces"].as_array().unwrap() {
        assert_eq!(space.as_object().unwrap().len(), columns.len());
    }
}

#[test]
fn a_full_disk_is_told_and_a_closed_pipe_is_not() {
    let ls = |stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_asctl"));
        let child = command.arg("ls").stdout(stdout).stderr(Stdio::piped());
        child.spawn().unwrap().wait_with_output().unwrap()
    };
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    let output = ls(full.unwrap().into());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "asctl: cannot write to standard output: No space left on device\n"
    );

    // The pipe to a program that is gone.
    let mut gone = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
    let pipe = gone.stdin.take().unwrap();
    gone.wait().unwrap();
    let output = ls(pipe.into());
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.is_empty());
}
