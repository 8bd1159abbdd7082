//! The director's main job on real kernels, from clients through a TAP and `tunl0` to databases:
//! each scenario by each way to read the TAP, and by the older one on an older kernel too.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

mod ledger;
mod membership;
mod persistence;
mod placement;
mod restart;
mod rig;
mod transfers;
mod warnings;

macro_rules! scenarios {
    ($($subject:ident: $($scenario:ident)+;)+) => {
        mod by_multishot_reads {
            $($(#[test] fn $scenario() {
                crate::rig::Rig::multishot().inspect(crate::$subject::$scenario);
            })+)+
        }
        mod by_polling {
            $($(#[test] fn $scenario() { crate::$subject::$scenario(&crate::rig::Rig::poll()); })+)+
        }
        mod by_polling_on_linux_6_1 {
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
}

#[test]
fn linux_6_1_without_inet_tables_is_warned_of() {
    rig::Rig::poll_in_a_guest().inspect(warnings::missing_tables_are_named);
}
