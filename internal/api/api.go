package api

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Code is the stable word that identifies an error in answers. Clients compare
// it; the wording of details may change. Package httpapi has the one table from
// codes to HTTP statuses.
type Code string

// The codes, in the order of their HTTP statuses.
const (
	BadRequest          Code = "bad_request"
	FutureRevision      Code = "future_revision"
	Unauthenticated     Code = "unauthenticated"
	PermissionDenied    Code = "permission_denied"
	KeyNotFound         Code = "key_not_found"
	MemberNotFound      Code = "member_not_found"
	LeaseNotFound       Code = "lease_not_found"
	LockNotFound        Code = "lock_not_found"
	NotFound            Code = "not_found"
	MethodNotAllowed    Code = "method_not_allowed"
	CrossOrigin         Code = "cross_origin"
	TLSRequired         Code = "tls_required"
	Misdirected         Code = "misdirected"
	MemberExists        Code = "member_exists"
	MemberRemoved       Code = "member_removed"
	LeaseExists         Code = "lease_exists"
	LockHeld            Code = "lock_held"
	UnsafeChange        Code = "unsafe_change"
	RevisionCompacted   Code = "revision_compacted"
	PreconditionFailed  Code = "precondition_failed"
	TooLarge            Code = "too_large"
	IdempotencyMismatch Code = "idempotency_mismatch"
	Overloaded          Code = "overloaded"
	NoLeader            Code = "no_leader"
	Starting            Code = "starting"
	Stopping            Code = "stopping"
	NoSpace             Code = "no_space"
	AuditFailed         Code = "audit_failed"
	ReadTimeout         Code = "read_timeout"
	Timeout             Code = "timeout"
	Internal            Code = "internal"
)

// The names of the alarms in Status.Alarms.
const (
	// SpaceLow only warns: nothing is refused yet, and the node and the cluster count
	// as healthy.
	SpaceLow          = "space_low"
	AlarmNoSpace      = "no_space"
	AlarmDiverged     = "diverged"
	AlarmStoreDamaged = "store_damaged"
	AlarmCatchUp      = "catch_up"      // raised by package catchup
	AlarmStartRefused = "start_refused" // raised by package raftnode
)

// Alarms are the names of all alarms that there are.
var Alarms = []string{SpaceLow, AlarmNoSpace, AlarmDiverged, AlarmStoreDamaged, AlarmCatchUp, AlarmStartRefused}

// AlarmName returns the name of an alarm in Status.Alarms, where a colon and what
// is wrong follow it.
func AlarmName(alarm string) string {
	name, _, _ := strings.Cut(alarm, ":")
	return name
}

// Error is a refusal or failure with its stable code. Detail names the input at
// fault and the remedy.
type Error struct {
	Code   Code
	Detail string
	// RetryAfter is how long to wait before trying again; 0 if that is unknown.
	RetryAfter time.Duration
	// Fields are further members of the problem document, for example the
	// "revision" of a failed precondition. Values must be plain data for
	// encoding/json. A field must not be named as one that every problem
	// document has.
	Fields map[string]any
}

// A problem has LimitField if the code alone does not tell which limit was reached.
const (
	LimitField  = "limit"
	MaxLearners = "max_learners"
)

// Error returns the code and the detail.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Detail }

// Errorf returns an Error with a code and a formatted detail.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// Member is a member of the cluster: its entry in the replicated membership, and
// what the answering node observes of it.
type Member struct {
	ID         uint64   `json:"id"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peer_urls"`
	ClientURLs []string `json:"client_urls"`
	// EtcdURLs are those at which it serves clients of etcd. Those clients get them in
	// their own protocol.
	EtcdURLs []string `json:"-"`
	// Learner is true if the member does not vote.
	Learner bool `json:"learner"`
	// Role is leader, follower, candidate, learner or unknown, as seen from
	// the answering node.
	Role string `json:"role"`
	// Reachable is true if the answering node has a working connection to it.
	Reachable bool `json:"reachable"`
	// Behind is the number of log entries that the member lacks, as the leader
	// knows it, or how many committed entries the answering node itself has not
	// applied. It is nil if the leader did not say.
	Behind *uint64 `json:"behind,omitempty"`
}

// Requester names a client's request in the logs of all members.
type Requester struct {
	RequestID string
	Client    string // its address
	Principal string // the user who asks; empty while rights are disabled
}

type requesterKey struct{}

// WithRequester returns a context that tells who asks for a change.
func WithRequester(ctx context.Context, r Requester) context.Context {
	return context.WithValue(ctx, requesterKey{}, r)
}

// RequesterOf returns who asks for a change; empty if the context does not tell.
func RequesterOf(ctx context.Context) Requester {
	r, _ := ctx.Value(requesterKey{}).(Requester)
	return r
}

// Once makes a membership change take effect once, however often its request arrives.
type Once struct {
	Key         string
	Fingerprint [16]byte // of the request
	// Replayed is set by the layer that carries out the request if it was a repeat.
	Replayed bool
}

type onceKey struct{}

// WithOnce returns a context whose membership change takes effect once.
func WithOnce(ctx context.Context, o *Once) context.Context {
	return context.WithValue(ctx, onceKey{}, o)
}

// OnceOf returns what WithOnce has put into the context, or nil.
func OnceOf(ctx context.Context) *Once {
	o, _ := ctx.Value(onceKey{}).(*Once)
	return o
}

// NewMember is a request to add a member. If ID is 0, the member gets the highest
// id ever used plus one.
type NewMember struct {
	ID         uint64   `json:"id,omitempty"`
	Name       string   `json:"name,omitempty"`
	PeerURLs   []string `json:"peer_urls"`
	ClientURLs []string `json:"client_urls,omitempty"`
	// Learner keeps the member a learner. Otherwise the leader promotes it once it
	// has caught up.
	Learner bool `json:"learner,omitempty"`
	// MaxLearners is how many members may stay learners after the addition of one; 0
	// means no limit. Only clients of etcd have one.
	MaxLearners int `json:"-"`
}

// AddedMember is the answer to NewMember: the member, and the shell command that
// starts it.
type AddedMember struct {
	Member
	Command string `json:"command"`
}

// LeaseTime is the time of a lease: as it was granted, and what is left. Both are 0 for
// a lease that has no end of its own.
type LeaseTime struct {
	TTL, Remaining time.Duration
}

// Leader identifies the current leader.
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
	// Lag is the number of entries that the node has heard to be committed and has
	// not applied. Its own log, and so Commit, may not reach that far.
	Lag uint64 `json:"lag"`
	// Staleness is how old the state of the node may be, a Go duration: everything
	// that was committed that long ago is in it. Empty while that is not known.
	Staleness string `json:"staleness,omitempty"`
	// StateHash is the hash of the replicated state at index Applied, 16
	// hexadecimal digits. Replicas have the same hash at the same index.
	StateHash string `json:"state_hash"`
	// StateHashes has the hashes at the latest log indexes divisible by 1,024.
	// Under load no two members are at the same index when they are asked; these
	// make them comparable.
	StateHashes     map[uint64]string `json:"state_hashes,omitempty"`
	Revision        uint64            `json:"revision"`
	CompactRevision uint64            `json:"compact_revision"`
	Keys            uint64            `json:"keys"`
	LogSizeBytes    int64             `json:"log_size_bytes"`
	StoreSizeBytes  int64             `json:"store_size_bytes"`
	// LogicalSizeBytes is the size of the live data, which the quota limits.
	LogicalSizeBytes  int64    `json:"logical_size_bytes"`
	QuotaBytes        int64    `json:"quota_bytes"`
	SnapshotSizeBytes int64    `json:"snapshot_size_bytes"`
	Engine            string   `json:"engine"`
	Version           string   `json:"version"`
	Uptime            string   `json:"uptime"` // a Go duration
	Alarms            []string `json:"alarms"`
	// KeptLog is what this node keeps for members that get a snapshot; nil if
	// there is none.
	KeptLog *KeptLog `json:"kept_log,omitempty"`
}

// KeptLog is the log that a node keeps on disk for members that get a snapshot,
// and what it does for them.
type KeptLog struct {
	Entries uint64 `json:"entries"`
	Bytes   int64  `json:"bytes"`
	// Building says that a snapshot body is being built.
	Building   bool               `json:"building"`
	Deliveries []SnapshotDelivery `json:"deliveries"`
	// IntakeLimitBytes is how much the leader takes per second so that a member
	// can catch up; 0 means no limit.
	IntakeLimitBytes int64 `json:"intake_limit_bytes"`
}

// SnapshotDelivery is a snapshot on its way to one member.
type SnapshotDelivery struct {
	To        uint64 `json:"to"`
	State     string `json:"state"` // waiting, sending, paused, catching_up
	Index     uint64 `json:"index"`
	BodyBytes int64  `json:"body_bytes"`
	// BehindBytes is the log after the body that the member still lacks.
	BehindBytes int64  `json:"behind_bytes"`
	Since       string `json:"since"` // how long it has been in this state, a Go duration
	Failures    int    `json:"failures"`
	Reason      string `json:"reason,omitempty"` // of the last failure
}

// MemberStatus is one row of ClusterStatus: the status of a member, or the
// reason why it is not available.
type MemberStatus struct {
	ID     uint64  `json:"id"`
	Name   string  `json:"name"`
	Status *Status `json:"status,omitempty"`
	Error  string  `json:"error,omitempty"`
}

// ClusterStatus has the statuses of all members side by side.
type ClusterStatus struct {
	ClusterID string         `json:"cluster_id"`
	Leader    uint64         `json:"leader"`
	Members   []MemberStatus `json:"members"`
	// Healthy is true if there is a leader, every voter answers, and no alarm is
	// raised.
	Healthy bool `json:"healthy"`
	// HashesAgree is true if the state hashes agree at all common indexes, and nil
	// if no two members have one in common.
	HashesAgree *bool `json:"hashes_agree"`
	// HashesCompared is the number of comparisons behind HashesAgree.
	HashesCompared int `json:"hashes_compared"`
}

// Version is the build of a node, the answer to GET /version.
type Version struct {
	Version   string   `json:"version"`
	Commit    string   `json:"commit"`
	GoVersion string   `json:"go_version"`
	API       []string `json:"api_versions"`
}
