package client

import (
	"context"
	"net/http"
)

// Settings are the limits that are the same on all nodes, because they decide whether a
// change is accepted.
type Settings struct {
	MaxKeyBytes   int64 `json:"max_key_bytes"`
	MaxValueBytes int64 `json:"max_value_bytes"`
	QuotaBytes    int64 `json:"quota_bytes"` // of all live keys and values; 0 means none
	// History is kept while it is younger than RetentionMillis or among the last
	// RetentionRevisions revisions.
	RetentionMillis    int64  `json:"retention_millis"`
	RetentionRevisions uint64 `json:"retention_revisions"`
	MaxTxnOps          int64  `json:"max_txn_ops"`
	MaxTxnBytes        int64  `json:"max_txn_bytes"`
	// Answers are remembered for repeats for IdempotencyMillis, up to IdempotencyBytes.
	IdempotencyMillis int64 `json:"idempotency_millis"`
	IdempotencyBytes  int64 `json:"idempotency_bytes"`
	// Tag identifies this state of the settings for SettingsChange.IfTag.
	Tag string `json:"-"`
}

// SettingsChange changes the settings that are not nil:
//
//	c.ChangeSettings(ctx, client.SettingsChange{MaxValueBytes: new(int64(4 << 20))})
type SettingsChange struct {
	MaxKeyBytes        *int64  `json:"max_key_bytes,omitempty"`
	MaxValueBytes      *int64  `json:"max_value_bytes,omitempty"`
	QuotaBytes         *int64  `json:"quota_bytes,omitempty"`
	RetentionMillis    *int64  `json:"retention_millis,omitempty"`
	RetentionRevisions *uint64 `json:"retention_revisions,omitempty"`
	MaxTxnOps          *int64  `json:"max_txn_ops,omitempty"`
	MaxTxnBytes        *int64  `json:"max_txn_bytes,omitempty"`
	IdempotencyMillis  *int64  `json:"idempotency_millis,omitempty"`
	IdempotencyBytes   *int64  `json:"idempotency_bytes,omitempty"`
	// IfTag makes the change only if the settings still have this Settings.Tag;
	// otherwise the error is ErrPreconditionFailed. Empty means always.
	IfTag string `json:"-"`
}

// Settings returns the settings of the cluster.
func (c *Client) Settings(ctx context.Context) (*Settings, error) {
	return tagged(ctx, c, newRequest(http.MethodGet, "/v1/settings"), tagOfSettings)
}

// ChangeSettings changes settings of the cluster, and returns all of them.
func (c *Client) ChangeSettings(ctx context.Context, s SettingsChange) (*Settings, error) {
	r, err := change(http.MethodPatch, "/v1/settings", nil).withJSON(s)
	if err != nil {
		return nil, err
	}
	return tagged(ctx, c, r.onlyIf(s.IfTag, false), tagOfSettings)
}

func tagOfSettings(s *Settings) *string { return &s.Tag }
