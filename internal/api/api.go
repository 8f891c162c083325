// Package api is the vocabulary that the HTTP front, the node and the Go
// client share: who the members are, how a node and the cluster describe
// themselves, and the error that carries a stable code. It holds plain data
// and imports nothing of kvd.
package api

import (
	"fmt"
	"time"
)

// Code is the stable word that names an error in answers. The HTTP status of
// each code stands in one table in package httpapi.
type Code string

// The codes of docs/api.md, in the order of their statuses.
const (
	BadRequest         Code = "bad_request"
	FutureRevision     Code = "future_revision"
	KeyNotFound        Code = "key_not_found"
	MemberNotFound     Code = "member_not_found"
	NotFound           Code = "not_found"
	MethodNotAllowed   Code = "method_not_allowed"
	CrossOrigin        Code = "cross_origin"
	Misdirected        Code = "misdirected"
	MemberExists       Code = "member_exists"
	MemberRemoved      Code = "member_removed"
	UnsafeChange       Code = "unsafe_change"
	RevisionCompacted  Code = "revision_compacted"
	PreconditionFailed Code = "precondition_failed"
	TooLarge           Code = "too_large"
	Overloaded         Code = "overloaded"
	NoLeader           Code = "no_leader"
	Starting           Code = "starting"
	Stopping           Code = "stopping"
	NoSpace            Code = "no_space"
	ReadTimeout        Code = "read_timeout"
	Timeout            Code = "timeout"
	Internal           Code = "internal"
)

// Error is a refusal or failure with its stable code. Detail says what was
// wrong with which input and what to do about it.
type Error struct {
	Code   Code
	Detail string
	// RetryAfter, where not zero, is when a repeat may succeed.
	RetryAfter time.Duration
	// Fields are further members of the problem document, such as
	// "revision" of a failed precondition; nil for none.
	Fields map[string]any
}

// Error returns the code and the detail.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Detail }

// Errorf returns an Error with the code and the formatted detail.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// Member is one member of the cluster as the replicated membership knows it,
// with what the answering node observes of it.
type Member struct {
	ID         uint64   `json:"id"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peer_urls"`
	ClientURLs []string `json:"client_urls"`
	// Learner is true for a member that does not vote.
	Learner bool `json:"learner"`
	// Role is leader, follower, candidate, learner or unknown, as seen from
	// the answering node.
	Role string `json:"role"`
	// Reachable says whether the answering node has a working connection.
	Reachable bool `json:"reachable"`
	// Behind is how many log entries the member lacks; only the leader knows
	// it, elsewhere it is nil.
	Behind *uint64 `json:"behind,omitempty"`
}

// NewMember is a request to add a member. A zero ID means: the highest id
// ever used plus one.
type NewMember struct {
	ID         uint64   `json:"id,omitempty"`
	Name       string   `json:"name,omitempty"`
	PeerURLs   []string `json:"peer_urls"`
	ClientURLs []string `json:"client_urls,omitempty"`
	// Learner keeps the member a learner; otherwise the leader promotes it
	// once it has caught up.
	Learner bool `json:"learner,omitempty"`
}

// AddedMember is the answer to adding a member: the member, and the shell
// command that starts it.
type AddedMember struct {
	Member
	Command string `json:"command"`
}

// Leader names the current leader.
type Leader struct {
	ID         uint64   `json:"id"`
	Name       string   `json:"name"`
	Term       uint64   `json:"term"`
	ClientURLs []string `json:"client_urls"`
}

// Status describes one node.
type Status struct {
	ID        uint64 `json:"id"`
	Name      string `json:"name"`
	ClusterID string `json:"cluster_id"` // 16 hexadecimal digits
	Role      string `json:"role"`       // leader, follower, candidate, learner
	Term      uint64 `json:"term"`
	Leader    uint64 `json:"leader"` // 0 when unknown
	Commit    uint64 `json:"commit"`
	Applied   uint64 `json:"applied"`
	// StateHash is the hash of the replicated state at index Applied, as 16
	// hexadecimal digits.
	StateHash string `json:"state_hash"`
	// StateHashes are those of the last log indexes divisible by 1,024, by
	// which members under load are compared.
	StateHashes     map[uint64]string `json:"state_hashes,omitempty"`
	Revision        uint64            `json:"revision"`
	CompactRevision uint64            `json:"compact_revision"`
	Keys            uint64            `json:"keys"`
	LogSizeBytes    int64             `json:"log_size_bytes"`
	StoreSizeBytes  int64             `json:"store_size_bytes"`
	// LogicalSizeBytes is what the quota counts.
	LogicalSizeBytes  int64    `json:"logical_size_bytes"`
	QuotaBytes        int64    `json:"quota_bytes"`
	SnapshotSizeBytes int64    `json:"snapshot_size_bytes"`
	Engine            string   `json:"engine"`
	Version           string   `json:"version"`
	Uptime            string   `json:"uptime"` // a Go duration
	Alarms            []string `json:"alarms"`
}

// MemberStatus is one row of ClusterStatus: the status of a member, or why it
// could not be had.
type MemberStatus struct {
	ID     uint64  `json:"id"`
	Name   string  `json:"name"`
	Status *Status `json:"status,omitempty"`
	Error  string  `json:"error,omitempty"`
}

// ClusterStatus lays the members' statuses side by side.
type ClusterStatus struct {
	ClusterID string         `json:"cluster_id"`
	Leader    uint64         `json:"leader"`
	Members   []MemberStatus `json:"members"`
	// Healthy is true when there is a leader, every voter answers and no
	// alarm is raised.
	Healthy bool `json:"healthy"`
	// HashesAgree says whether the state hashes of all common indexes agree;
	// nil when no two members share an index.
	HashesAgree *bool `json:"hashes_agree"`
	// HashesCompared counts the (index, member) pairs compared.
	HashesCompared int `json:"hashes_compared"`
}

// Check is one line of /readyz?verbose.
type Check struct {
	Name string
	Err  error // nil when it passes
}

// Version is the answer of /version.
type Version struct {
	Version   string   `json:"version"`
	Commit    string   `json:"commit"`
	GoVersion string   `json:"go_version"`
	API       []string `json:"api_versions"`
}
