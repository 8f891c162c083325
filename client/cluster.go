package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

// Member is a member of the cluster.
type Member struct {
	ID         uint64   `json:"id"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peer_urls"`
	ClientURLs []string `json:"client_urls"`
	Learner    bool     `json:"learner"`   // does not vote
	Role       string   `json:"role"`      // leader, follower, candidate, learner, unknown
	Reachable  bool     `json:"reachable"` // from the node that answered
	// Behind is the number of log entries that the member lacks; nil if the leader did
	// not say.
	Behind *uint64 `json:"behind"`
}

// NewMember describes a member to add.
type NewMember struct {
	ID         uint64   `json:"id,omitempty"` // 0: the cluster chooses
	Name       string   `json:"name,omitempty"`
	PeerURLs   []string `json:"peer_urls"`
	ClientURLs []string `json:"client_urls,omitempty"`
	Learner    bool     `json:"learner,omitempty"` // stay a learner
}

// AddedMember is a member that was added, with the command that starts it.
type AddedMember struct {
	Member
	Command string `json:"command"`
}

// Leader is the member that leads.
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
	ClusterID string `json:"cluster_id"`
	Role      string `json:"role"`
	Term      uint64 `json:"term"`
	Leader    uint64 `json:"leader"` // 0 if unknown
	Commit    uint64 `json:"commit"`
	Applied   uint64 `json:"applied"`
	// Lag is the number of entries that the node knows to be committed and has not
	// applied. Everything that was committed Staleness ago, a Go duration, is in the
	// node's state; empty while that is not known.
	Lag       uint64 `json:"lag"`
	Staleness string `json:"staleness,omitempty"`
	// StateHash is equal on all replicas at equal Applied.
	StateHash string `json:"state_hash"`
	// StateHashes has those at the latest log indexes divisible by 1,024.
	StateHashes       map[uint64]string `json:"state_hashes,omitempty"`
	Revision          uint64            `json:"revision"`
	CompactRevision   uint64            `json:"compact_revision"`
	Keys              uint64            `json:"keys"`
	LogSizeBytes      int64             `json:"log_size_bytes"`
	StoreSizeBytes    int64             `json:"store_size_bytes"`
	SnapshotSizeBytes int64             `json:"snapshot_size_bytes"`
	LogicalSizeBytes  int64             `json:"logical_size_bytes"` // what the quota counts
	QuotaBytes        int64             `json:"quota_bytes"`
	Engine            string            `json:"engine"`
	Version           string            `json:"version"`
	Uptime            string            `json:"uptime"`
	Alarms            []string          `json:"alarms"`
	// KeptLog is what the node keeps and does for members that get a snapshot; nil if
	// there is none.
	KeptLog *KeptLog `json:"kept_log,omitempty"`
}

// KeptLog is the log that a node keeps for members that catch up.
type KeptLog struct {
	Entries    uint64             `json:"entries"`
	Bytes      int64              `json:"bytes"`
	Building   bool               `json:"building"` // a snapshot is being built
	Deliveries []SnapshotDelivery `json:"deliveries"`
	// IntakeLimitBytes is how much the leader takes per second meanwhile; 0 means no
	// limit.
	IntakeLimitBytes int64 `json:"intake_limit_bytes"`
}

// SnapshotDelivery is a snapshot on its way to a member.
type SnapshotDelivery struct {
	To          uint64 `json:"to"`
	State       string `json:"state"` // waiting, sending, paused, catching_up
	Index       uint64 `json:"index"` // of the state in the snapshot
	BodyBytes   int64  `json:"body_bytes"`
	BehindBytes int64  `json:"behind_bytes"` // log after it that the member lacks
	Since       string `json:"since"`        // how long in this state, a Go duration
	Failures    int    `json:"failures"`
	Reason      string `json:"reason,omitempty"` // of the last failure
}

// MemberStatus is the status of a member, or why there is none.
type MemberStatus struct {
	ID     uint64  `json:"id"`
	Name   string  `json:"name"`
	Status *Status `json:"status,omitempty"` // nil if the member did not answer
	Error  string  `json:"error,omitempty"`
}

// ClusterStatus has the statuses of all members.
type ClusterStatus struct {
	ClusterID string         `json:"cluster_id"`
	Leader    uint64         `json:"leader"`
	Members   []MemberStatus `json:"members"`
	// Healthy is true if there is a leader, every voter answers, and no alarm is
	// raised.
	Healthy bool `json:"healthy"`
	// HashesAgree is nil if no two members could be compared.
	HashesAgree    *bool `json:"hashes_agree"`
	HashesCompared int   `json:"hashes_compared"`
}

func get[T any](ctx context.Context, c *Client, path string) (*T, error) {
	out := new(T)
	_, err := c.call(ctx, newRequest(http.MethodGet, path), out)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Members returns the members of the cluster.
func (c *Client) Members(ctx context.Context) ([]Member, error) {
	out, err := get[struct {
		Members []Member `json:"members"`
	}](ctx, c, "/v1/members")
	if err != nil {
		return nil, err
	}
	return out.Members, nil
}

// AddMember adds a member. It begins as a learner, and is promoted once it has caught
// up, unless it asks to stay a learner.
func (c *Client) AddMember(ctx context.Context, m NewMember) (*AddedMember, error) {
	r, err := change(http.MethodPost, "/v1/members", nil).withJSON(m)
	if err != nil {
		return nil, err
	}
	out := new(AddedMember)
	if _, err := c.call(ctx, r, out); err != nil {
		return nil, err
	}
	return out, nil
}

// UpdateMember changes the URLs of a member. nil keeps the current ones.
func (c *Client) UpdateMember(ctx context.Context, id uint64, peerURLs, clientURLs []string) (*Member, error) {
	r, err := change(http.MethodPut, memberPath(id), nil).withJSON(struct {
		PeerURLs   []string `json:"peer_urls,omitempty"`
		ClientURLs []string `json:"client_urls,omitempty"`
	}{peerURLs, clientURLs})
	if err != nil {
		return nil, err
	}
	out := new(Member)
	if _, err := c.call(ctx, r, out); err != nil {
		return nil, err
	}
	return out, nil
}

// PromoteMember makes a voter of a learner that has caught up.
func (c *Client) PromoteMember(ctx context.Context, id uint64) error {
	_, err := c.call(ctx, change(http.MethodPost, memberPath(id)+"/promote", nil), nil)
	return err
}

// RemoveMember removes a member for good; its id never returns.
func (c *Client) RemoveMember(ctx context.Context, id uint64) error {
	_, err := c.call(ctx, change(http.MethodDelete, memberPath(id), nil), nil)
	return err
}

func memberPath(id uint64) string { return "/v1/members/" + strconv.FormatUint(id, 10) }

// Leader returns the member that leads.
func (c *Client) Leader(ctx context.Context) (*Leader, error) {
	return get[Leader](ctx, c, "/v1/leader")
}

// TransferLeader hands the leadership to a member.
func (c *Client) TransferLeader(ctx context.Context, to uint64) error {
	// It needs no idempotency key: a repeat finds the leadership where it wants it.
	r := newRequest(http.MethodPost, "/v1/leader")
	r.query = url.Values{"to": {strconv.FormatUint(to, 10)}}
	_, err := c.call(ctx, r, nil)
	return err
}

// Status describes the node that answers.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return get[Status](ctx, c, "/v1/status")
}

// Cluster describes all members side by side.
func (c *Client) Cluster(ctx context.Context) (*ClusterStatus, error) {
	return get[ClusterStatus](ctx, c, "/v1/cluster")
}

// Compact makes the revisions before the given one unreadable, and returns the oldest
// one that can be read.
func (c *Client) Compact(ctx context.Context, revision uint64) (uint64, error) {
	r := change(http.MethodPost, "/v1/compact", nil)
	r.query = url.Values{"revision": {strconv.FormatUint(revision, 10)}}
	var out struct {
		CompactRevision uint64 `json:"compact_revision"`
	}
	_, err := c.call(ctx, r, &out)
	return out.CompactRevision, err
}

// Metrics returns what the node that answers measures, in the text format of Prometheus.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	resp, err := c.do(ctx, newRequest(http.MethodGet, "/metrics"))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}
