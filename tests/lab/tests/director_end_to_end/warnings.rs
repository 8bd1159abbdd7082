//! What a kernel cannot do is said, and the rest goes on.

use adit_lab::topology::vip;
use adit_lab::{Caller, SERVE_PORT};

use crate::rig::Rig;

/// User-Mode Linux has no nf_tables of family inet, so there can be no notrack rules.
pub(crate) fn missing_tables_are_named(rig: &Rig) {
    let director = rig.start(&rig.both("maglev", rig.reals()));
    director.host().sh("! nft add table inet probe 2>/dev/null").unwrap();
    let status = director.status().unwrap();
    let warnings = status["warnings"].as_array().unwrap();
    let about = |warning: &&serde_json::Value| {
        warning["message"].as_str().is_some_and(|text| text.contains("notrack"))
    };
    assert!(warnings.iter().any(|warning| about(&warning)), "{status}");
    assert!(director.log().contains("notrack"), "{}", director.log());
    Caller::new(&rig.client, vip(SERVE_PORT)).whoami().unwrap();
}
