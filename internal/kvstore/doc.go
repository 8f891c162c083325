// Package kvstore is the replicated state of kvd: keys with revisions, their
// history, and the settings that decide outcomes.
//
// It is a deterministic state machine over an engine of ordered bytes. Apply
// takes entries in order and reads nothing of the node it runs on: no clock,
// flag, disk size, randomness or map order. Equal entries give equal state,
// which a hash kept incrementally proves all the time.
//
// Read it in this order: types.go, store.go, apply.go, read.go, history.go,
// layout.go (how it lies in the engine), codec.go, body.go.
package kvstore
