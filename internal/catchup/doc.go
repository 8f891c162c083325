// Package catchup decides what a leader does so that a member that lags too far
// catches up.
package catchup
