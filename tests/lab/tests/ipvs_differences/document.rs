//! docs/ipvs-differences.md, whose table is that of the test.

use std::path::Path;

use crate::table::TABLE;

/// The lines of the document's table.
fn wanted() -> Vec<String> {
    let row = |cells: [&str; 4]| format!("| {} |", cells.join(" | "));
    let head = [row(["What", "Adit", "IPVS", "Why"]), row(["---"; 4])];
    let rows = TABLE.iter().map(|listed| row([listed.what, listed.adit, listed.ipvs, listed.why]));
    head.into_iter().chain(rows).collect()
}

#[test]
fn the_document_has_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/ipvs-differences.md");
    let text = std::fs::read_to_string(path).unwrap();
    let listed: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
    let wanted = wanted();
    assert_eq!(listed, wanted, "docs/ipvs-differences.md should have:\n{}", wanted.join("\n"));
}
