//! The calls of the interface: one table that the router, the access check, the metrics and the
//! published description all follow.

use axum::http::Method;

use crate::edge::access::Role;

/// Who may make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Anybody who reaches the port.
    Nothing,
    Role(Role),
}

macro_rules! calls {
    ($($name:ident $method:ident $path:literal $needs:expr;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Call { $($name),* }

        impl Call {
            pub(crate) const ALL: &'static [Call] = &[$(Call::$name),*];

            pub(crate) fn method(self) -> Method {
                match self { $(Call::$name => Method::$method),* }
            }

            /// The path as routed and as published; also the label in the metrics.
            pub(crate) fn path(self) -> &'static str {
                match self { $(Call::$name => $path),* }
            }

            pub(crate) fn needs(self) -> Needs {
                match self { $(Call::$name => $needs),* }
            }
        }
    };
}

const OPEN: Needs = Needs::Nothing;
const READ: Needs = Needs::Role(Role::Read);
const ADMIT: Needs = Needs::Role(Role::Admit);
const OPERATE: Needs = Needs::Role(Role::Operate);

calls! {
    Admit         POST "/v1/admissions"                   ADMIT;
    AdmitBatch    POST "/v1/admissions/batch"             ADMIT;
    GetAdmission  GET  "/v1/admissions/{admission}"         READ;
    Settle        POST "/v1/admissions/{admission}/settle"  ADMIT;
    Extend        POST "/v1/admissions/{admission}/extend"  ADMIT;
    Release       POST "/v1/admissions/{admission}/release" ADMIT;
    GetAccount    GET  "/v1/accounts/{account}"           READ;
    PutAccount    PUT  "/v1/accounts/{account}"           OPERATE;
    PutGrant      POST "/v1/accounts/{account}/grants"    OPERATE;
    RevokeGrant   POST "/v1/accounts/{account}/grants/{grant}/revoke" OPERATE;
    // Only for one that was put by; the others need OPERATE.
    Reset         POST "/v1/accounts/{account}/resets"    ADMIT;
    GetLedger     GET  "/v1/accounts/{account}/ledger"    READ;
    GetUsage      GET  "/v1/usage"                        READ;
    GetCharges    GET  "/v1/charges"                      READ;
    GetTopUps     GET  "/v1/topups"                       READ;
    GetTopUp      GET  "/v1/topups/{top_up}"              READ;
    ConfirmTopUp  POST "/v1/topups/{top_up}/confirm"      OPERATE;
    FailTopUp     POST "/v1/topups/{top_up}/fail"         OPERATE;
    GetPolicy     GET  "/v1/policy"                       READ;
    PutPolicy     PUT  "/v1/policy"                       OPERATE;
    Signal        POST "/v1/signals"                      ADMIT;
    GetFeatures   GET  "/v1/features"                     READ;
    GetFeature    GET  "/v1/features/{feature}"           READ;
    GetCluster    GET  "/v1/cluster"                      READ;
    ChangeMembers POST "/v1/cluster/members"              OPERATE;
    GetFacts      GET  "/v1/facts"                        OPERATE;
    GetFactsDigest GET "/v1/facts/digest"                 OPERATE;
    GetBalances   GET  "/v1/balances"                     OPERATE;
    Mark          POST "/v1/cluster/marks"                OPERATE;
    GetHash       GET  "/v1/cluster/hash"                 OPERATE;
    Livez         GET  "/livez"                           OPEN;
    Readyz        GET  "/readyz"                          OPEN;
    Metrics       GET  "/metrics"                         READ;
    Openapi       GET  "/openapi.json"                    OPEN;
}

impl Call {
    /// Whether it asks for work that has not begun: that is turned away first when the cluster is behind, so that what is
    /// under way can be ended and the cluster be run.
    pub(crate) fn is_new_work(self) -> bool {
        matches!(self, Call::Admit | Call::AdmitBatch)
    }

    /// Whether it may change anything, so that losing its answer leaves its outcome open.
    pub(crate) fn changes(self) -> bool {
        self.method() != Method::GET
    }
}
