package kvstore

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kvd-io/kvd/internal/limits"
)

// DefaultSettings returns the settings of a store in which none were ever set.
func DefaultSettings() Settings {
	return Settings{
		MaxKeyBytes:        MaxKeyBytes,
		MaxValueBytes:      1 << 20,
		QuotaBytes:         8 << 30,
		RetentionMillis:    10 * 60 * 1000,
		RetentionRevisions: 10_000,
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
	return errors.Join(problems...)
}

func encodeSettings(s *Settings) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("kvstore: encode settings: %v", err)) // plain data always encodes
	}
	return append([]byte{recordVersion}, b...)
}

func decodeSettings(b []byte) (Settings, error) {
	d, err := openRecord("settings", b)
	if err != nil {
		return Settings{}, err
	}
	var s Settings
	if err := json.Unmarshal(d.rest(), &s); err != nil {
		return Settings{}, fmt.Errorf("settings record: %w", err)
	}
	return s, nil
}

// applySettings sets new settings. A leader proposes only first values, from its
// flags; they are ignored once any settings were set. Otherwise a change of leader
// could undo what an operator has set.
func (x *executor) applySettings(c *Command, e *Entry) Result {
	if c.Term != 0 && (c.Term != e.Term || x.settingsGiven) {
		return Result{Outcome: Ignored}
	}
	if err := c.Settings.Validate(); err != nil {
		return refuse(Invalid, "%v", err)
	}
	old := encodeSettings(&x.settings)
	x.settings, x.settingsGiven = *c.Settings, true
	b := encodeSettings(&x.settings)
	x.now.hash += x.hasher.settings(b) - x.hasher.settings(old)
	x.writes.Set([]byte{tableSetting}, b)
	return Result{}
}
