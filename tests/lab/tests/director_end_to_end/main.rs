//! The director's main job on real kernels, from clients through a TAP and `tunl0` to databases:
//! each scenario by each way to read the TAP, and by the older one on an older kernel too.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

mod ledger;
mod membership;
mod narrow;
mod persistence;
mod placement;
mod restart;
mod rig;
mod transfers;
mod versions;
mod warnings;

macro_rules! scenarios {
    ($($subject:ident: $($scenario:ident)+;)+) => {
        mod by_multishot_reads {
            $($(#[test] fn $scenario() {
                crate::rig::Rig::multishot().inspect(crate::$subject::$scenario);
            })+)+
        }
        mod by_polling {
            $($(#[test] fn $scenario() {
                crate::rig::Rig::poll().inspect(crate::$subject::$scenario);
            })+)+
        }
        mod by_polling_in_a_guest {
            $($(#[test] fn $scenario() {
                crate::rig::Rig::poll_in_a_guest().inspect(crate::$subject::$scenario);
            })+)+
        }
    };
}

scenarios! {
    transfers: a_hundred_megabytes_arrive_byte_for_byte;
    placement: flows_land_where_explain_said_before_any_traffic;
    persistence: a_client_stays_at_its_server_until_that_is_drained;
    membership: a_server_joins_and_leaves_and_the_director_is_killed_under_sessions;
    restart: sessions_by_turns_outlive_a_killed_director;
    ledger: every_packet_of_a_burst_is_accounted_for;
    versions: sessions_over_ipv6_reach_the_databases_in_ipv6;
    narrow: a_hop_that_became_narrow_is_told_to_the_client_and_uploads_complete;
}

#[test]
fn a_kernel_without_inet_tables_is_warned_of() {
    rig::Rig::poll_in_a_guest().inspect(warnings::missing_tables_are_named);
}
