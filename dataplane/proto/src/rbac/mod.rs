//! Role-based access control: whether a connection or a request is allowed, and by which policy.
//!
//! [`Engine::decide`] is a pure function of a [`View`]. A filter makes an engine of `rules` and another of `shadow_rules`
//! when it is configured, and fills in a view for every decision; what a view does not have (headers where there are no
//! requests, a certificate where there is no TLS) matches nothing.

mod rule;
mod view;

use culvert_model::{RbacAction, RbacOutcome, RbacPolicy, RbacRules};

use rule::Rule;
pub use view::{Identity, State, View};

use crate::tree::{Found, Tree};

/// Rules, compiled.
#[derive(Debug)]
pub struct Engine(Kind);

#[derive(Debug)]
enum Kind {
    Matcher(Tree<RbacOutcome>),
    Policies {
        action: RbacAction,
        /// In the order of their names.
        policies: Vec<Policy>,
    },
}

#[derive(Debug)]
struct Policy {
    name: String,
    permissions: Rule,
    principals: Rule,
}

/// What rules say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decision<'e> {
    /// Whether it may go on.
    pub allowed: bool,
    /// The policy that decided; `None` when none matched.
    pub policy: Option<&'e str>,
    /// Whether rules with `LOG` matched.
    pub logged: bool,
}

impl Engine {
    /// Compiles rules.
    pub fn compile(rules: &RbacRules) -> Self {
        Self(match rules {
            RbacRules::Matcher(matcher) => Kind::Matcher(Tree::compile(matcher, &RbacOutcome::clone)),
            RbacRules::Policies { action, policies } => Kind::Policies {
                action: *action,
                policies: policies.iter().map(|(name, policy)| Policy::compile(name, policy)).collect(),
            },
        })
    }

    /// What the rules say about `view`.
    pub fn decide(&self, view: &View<'_>) -> Decision<'_> {
        match &self.0 {
            Kind::Matcher(tree) => match tree.find(view) {
                Found::Action(outcome) => Decision {
                    allowed: outcome.action != RbacAction::Deny,
                    policy: Some(&outcome.name),
                    logged: outcome.action == RbacAction::Log,
                },
                Found::NoMatch | Found::Undecided => Decision { allowed: false, policy: None, logged: false },
            },
            Kind::Policies { action, policies } => {
                let matching = policies.iter().find(|policy| policy.matches(view));
                Decision {
                    allowed: match action {
                        RbacAction::Allow => matching.is_some(),
                        RbacAction::Deny => matching.is_none(),
                        RbacAction::Log => true,
                    },
                    policy: matching.map(|policy| policy.name.as_str()),
                    logged: *action == RbacAction::Log && matching.is_some(),
                }
            }
        }
    }
}

impl Decision<'_> {
    /// `rbac_access_denied_matched_policy[name]`, what a denial is logged as. Blanks become underscores.
    pub fn details(&self) -> String {
        let name = self.policy.unwrap_or("none").replace(|c: char| c.is_ascii_whitespace(), "_");
        format!("rbac_access_denied_matched_policy[{name}]")
    }
}

impl Policy {
    fn compile(name: &str, policy: &RbacPolicy) -> Self {
        Self {
            name: name.to_owned(),
            permissions: Rule::any_of(&policy.permissions),
            principals: Rule::any_of(&policy.principals),
        }
    }

    fn matches(&self, view: &View<'_>) -> bool {
        self.permissions.matches(view) && self.principals.matches(view)
    }
}
