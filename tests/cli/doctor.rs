//! `adit doctor` on hosts that are well and that are not, and the socket for those who may only look.

use crate::THREE;
use crate::lab::{Lab, eventually, lab};
use std::os::unix::fs::PermissionsExt as _;

/// `THREE`, with a line more in `[director]`.
fn with_director_line(lab: &Lab, line: &str) {
    lab.configure(THREE);
    let file = lab.file("adit.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("[director]\n", &format!("[director]\n{line}\n"))).unwrap();
}

#[test]
fn a_director_that_is_well_has_no_errors_and_faults_are_named_as_they_come() {
    let Some(mut lab) = lab() else { return };
    lab.configure(THREE);
    let said = lab.refused("doctor");
    assert!(said.contains("ERROR: no director listens on"), "{said}");

    lab.start();
    eventually("all next hops are known", || {
        let output = lab.adit("doctor");
        output.status.success().then_some(())?;
        let said = String::from_utf8(output.stdout).unwrap();
        (said.contains("0 errors") && !said.contains("has not answered")).then_some(())
    });

    // A key that everybody can read.
    let key = lab.file("hash.key");
    std::fs::write(&key, [7; 16]).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    with_director_line(&lab, &format!("hash_key_file = \"{}\"", key.display()));
    for command in ["check", "doctor"] {
        assert!(lab.ok(command).contains("can be read by everybody"), "{command}");
    }

    // A file that was edited since.
    lab.configure(&THREE.replace("port = 7", "port = 8"));
    assert!(lab.ok("doctor").contains("not the one in force"));
    lab.configure(THREE);

    // Nobody serves that port.
    lab.datagram("198.51.100.1:40000", "192.0.2.10:9");
    eventually("the drop is seen", || {
        lab.ok("doctor").contains("1 packets to VIPs for ports").then_some(())
    });

    // What others take away and what cannot be put back.
    lab.on_director("ip link set adit0 down");
    eventually("the missing route is an error", || {
        let said = String::from_utf8(lab.adit("doctor").stdout).unwrap();
        said.contains("the route of 192.0.2.10 to the TAP").then_some(())
    });
    lab.on_director("ip link set adit0 up");
    eventually("it is well again", || lab.adit("doctor").status.success().then_some(()));

    let report = lab.json("doctor");
    assert!(report["uptime_seconds"].is_u64(), "{report}");
    assert!(report["findings"].is_array(), "{report}");
}

#[test]
fn the_group_may_look_and_change_nothing() {
    let Some(mut lab) = lab() else { return };
    with_director_line(&lab, "admin_group = \"no-such-group\"");
    assert!(lab.refused("check").contains("this host has no such group"));
    assert!(lab.refused("run").contains("there is no group no-such-group"));

    with_director_line(&lab, "admin_group = \"daemon\"");
    lab.start();
    for shown in ["list", "connections", "drops", "explain 198.51.100.1:1 192.0.2.10:7/udp"] {
        let output = lab.adit_as("daemon", shown);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{shown}: {said}");
    }
    for refused in ["reload", "reload --dry-run", "capture --count 1", "probe 10.0.0.2"] {
        let output = lab.adit_as("daemon", refused);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{refused}");
        assert!(said.contains("it only shows; ask as root"), "{refused}: {said}");
    }
    // Others may not even look.
    let output = lab.adit_as("games", "list");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("Permission denied"), "{said}");
}
