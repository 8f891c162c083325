// Package rights says who may do what. It has the language of users, roles, tokens and
// permissions, and judges by them; it stores nothing, proves nobody's identity, and knows
// neither HTTP nor gRPC nor a clock.
//
// # The path of a judgment
//
// A Tables has the replicated users, roles and tokens. It compiles what a user may do
// into a Grants: the union of the permissions of the user's roles, as ranges that neither
// overlap nor touch. The Grants are asked for each Need of a
// request. The same Tables with the same change is the same everywhere: apply judges with it on
// every member, and both faces judge with it at the door.
//
// # Invariants
//
//	R1  A range is allowed only if the union of the permissions covers all of it, and
//	    then it is allowed (TestGrantsAreTheUnion, against single keys).
//	R2  A change either gives valid tables, or an error that leaves them as they were
//	    (TestRefusedChangeChangesNothing).
//	R3  Every change raises the revision by one, and nothing else does.
//	R4  While rights are enabled there is a user root with the role root
//	    (TestRootStays).
//	R5  A refusal names the user, the access and the range that the user asked for, and
//	    nothing that is stored. Only who may see the tables is told more.
//	R6  Without the role root, nobody changes what anybody may do by more than it may
//	    do itself (CheckChange, TestNobodyGainsByChanging).
//
// # Rejected
//
// Rules that deny, as some systems have them: what a user may do would depend on an order,
// and the union of roles could not be shown as a list of ranges.
package rights
