//! The ways in which a director reads its TAP; what is tested by one is tested by the other.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use crate::director::{Config, Director, Service};
use crate::error::Result;
use crate::namespace::Namespace;
use crate::network::{addresses, wire};
use crate::realserver::SERVE_PORT;
use crate::report::report;
use crate::run::Run;
use crate::skip::skipped;
use crate::topology::{CLIENT_DEVICE, vip};

/// A way to read the TAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// `READ_MULTISHOT`, on kernels where it is to be relied on.
    Multishot,
    /// One-shot polls.
    Poll,
}

/// Why a director refuses `io = "multishot"` on this kernel, if it does.
static OBSTACLE: LazyLock<Result<Option<String>>> = LazyLock::new(obstacle);

impl Engine {
    /// As in `io = …`, and as a director's status names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Multishot => "multishot",
            Self::Poll => "poll",
        }
    }

    /// A configuration that asks for this engine by name.
    #[must_use]
    pub fn config(self) -> Config {
        Config::new().set("io", &format!("{:?}", self.name()))
    }

    /// Whether directors on this computer's kernel have this engine, by what one of them says; says
    /// why not.
    ///
    /// # Panics
    /// When a director does not start for another reason.
    #[must_use]
    pub fn works_here(self) -> bool {
        if self == Self::Poll {
            return true;
        }
        match &*OBSTACLE {
            Ok(None) => true,
            Ok(Some(why)) => {
                skipped(why);
                false
            }
            Err(error) => panic!("no director for a try: {error}"),
        }
    }
}

/// Starts a director that has nothing to do.
fn obstacle() -> Result<Option<String>> {
    let run = Arc::new(Run::new()?);
    let host = Namespace::create(&run, "try")?;
    let other = Namespace::create(&run, "other")?;
    wire(&host, CLIENT_DEVICE, &other, CLIENT_DEVICE)?;
    addresses(&host, CLIENT_DEVICE, &["10.2.0.5/24"])?;
    host.ip("route add default via 10.2.0.1")?;
    let real: IpAddr = "10.20.0.11".parse().expect("an address");
    let service = Service::tcp("none", vip(SERVE_PORT)).address(real, 100);
    let config = Engine::Multishot.config().service(service);
    match Director::start(Arc::new(host), &config) {
        Ok(director) => {
            let status = director.status()?;
            report(&format!("multishot reads: {}", status["engine_reason"]));
            Ok(None)
        }
        Err(error) => {
            let text = error.to_string();
            let refusal = text.lines().find(|line| line.contains("io = \"multishot\""));
            refusal.map(|line| Some(line.to_owned())).ok_or(error)
        }
    }
}

/// Makes tests of functions that take an [`Engine`]: one for each engine, which is skipped by name
/// where this computer does not have it.
#[macro_export]
macro_rules! by_each_engine {
    ($($test:ident)+) => {
        mod by_multishot_reads {
            $(#[test] fn $test() {
                if $crate::skip::has_root() && $crate::Engine::Multishot.works_here() {
                    super::$test($crate::Engine::Multishot);
                }
            })+
        }
        mod by_polling {
            $(#[test] fn $test() {
                if $crate::skip::has_root() {
                    super::$test($crate::Engine::Poll);
                }
            })+
        }
    };
}
