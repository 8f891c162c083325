package command

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"github.com/kvd-io/kvd/internal/limits"
)

// DefaultSettings returns the settings of a store in which none were ever set.
func DefaultSettings() Settings {
	return Settings{
		MaxKeyBytes:        MaxKeyBytes,
		MaxValueBytes:      1536 << 10,
		QuotaBytes:         8 << 30,
		RetentionMillis:    10 * 60 * 1000,
		RetentionRevisions: 10_000,
		MaxTxnOps:          512,
		MaxTxnBytes:        4 << 20,
		IdempotencyMillis:  10 * 60 * 1000,
		IdempotencyBytes:   64 << 20,
	}
}

// Validate reports everything that is wrong with the settings.
func (s Settings) Validate() error {
	var problems []error
	complain := func(wrong bool, format string, args ...any) {
		if wrong {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	complain(s.MaxKeyBytes < 1 || s.MaxKeyBytes > MaxKeyBytes, "max_key_bytes is %d, but must be from 1 to %d", s.MaxKeyBytes, MaxKeyBytes)
	complain(s.MaxValueBytes < 1 || s.MaxValueBytes > limits.MaxValueBytes, "max_value_bytes is %d, but must be from 1 to %d", s.MaxValueBytes, limits.MaxValueBytes)
	complain(s.QuotaBytes != 0 && s.QuotaBytes < limits.MinQuotaBytes, "quota_bytes is %d, but must be 0 (unlimited) or at least %d", s.QuotaBytes, limits.MinQuotaBytes)
	complain(s.RetentionMillis < 0, "retention_millis is %d, but must not be negative", s.RetentionMillis)
	complain(s.MaxTxnOps < 1 || s.MaxTxnOps > limits.MaxTxnOps, "max_txn_ops is %d, but must be from 1 to %d", s.MaxTxnOps, limits.MaxTxnOps)
	complain(s.MaxTxnBytes < 1 || s.MaxTxnBytes > limits.MaxTxnBytes, "max_txn_bytes is %d, but must be from 1 to %d", s.MaxTxnBytes, limits.MaxTxnBytes)
	complain(s.IdempotencyMillis < 0, "idempotency_millis is %d, but must not be negative", s.IdempotencyMillis)
	complain(s.IdempotencyBytes < limits.MinIdempotencyBytes || s.IdempotencyBytes > limits.MaxIdempotencyBytes,
		"idempotency_bytes is %d, but must be from %d to %d", s.IdempotencyBytes, limits.MinIdempotencyBytes, limits.MaxIdempotencyBytes)
	return errors.Join(problems...)
}

// Tag identifies the settings by their content, for entity tags and conditions. It
// is never 0.
func (s Settings) Tag() uint64 { return max(xxhash.Sum64(s.JSON()), 1) }

// SettingsChange has the settings to change. nil leaves a setting as it is when the
// command is applied: a full set, read and sent back, would undo what another client
// changed in between.
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
}

// Change returns the change that sets all settings.
func (s Settings) Change() *SettingsChange {
	return &SettingsChange{&s.MaxKeyBytes, &s.MaxValueBytes, &s.QuotaBytes, &s.RetentionMillis, &s.RetentionRevisions, &s.MaxTxnOps, &s.MaxTxnBytes, &s.IdempotencyMillis, &s.IdempotencyBytes}
}

// signed returns the settings that are signed numbers, in the order of the command
// format. RetentionRevisions follows them there.
func (c *SettingsChange) signed() []**int64 {
	return []**int64{&c.MaxKeyBytes, &c.MaxValueBytes, &c.QuotaBytes, &c.RetentionMillis, &c.MaxTxnOps, &c.MaxTxnBytes, &c.IdempotencyMillis, &c.IdempotencyBytes}
}

// Validate reports everything that is wrong with the change. No setting depends on
// another, so the current settings do not matter.
func (c *SettingsChange) Validate() error { return c.Applied(DefaultSettings()).Validate() }

func (c *SettingsChange) Applied(s Settings) Settings {
	replace(&s.MaxKeyBytes, c.MaxKeyBytes)
	replace(&s.MaxValueBytes, c.MaxValueBytes)
	replace(&s.QuotaBytes, c.QuotaBytes)
	replace(&s.RetentionMillis, c.RetentionMillis)
	replace(&s.RetentionRevisions, c.RetentionRevisions)
	replace(&s.MaxTxnOps, c.MaxTxnOps)
	replace(&s.MaxTxnBytes, c.MaxTxnBytes)
	replace(&s.IdempotencyMillis, c.IdempotencyMillis)
	replace(&s.IdempotencyBytes, c.IdempotencyBytes)
	return s
}

func replace[T any](field, value *T) {
	if value != nil {
		*field = *value
	}
}

// JSON returns the settings in JSON, always the same bytes for the same settings.
func (s Settings) JSON() []byte {
	b, err := json.Marshal(&s)
	if err != nil {
		panic(fmt.Sprintf("command: encode settings: %v", err)) // plain data always encodes
	}
	return b
}
