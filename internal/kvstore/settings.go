package kvstore

import (
	"encoding/json"
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

func encodeSettings(s *Settings) []byte {
	return append([]byte{layout.RecordVersion}, s.JSON()...)
}

func decodeSettings(b []byte) (Settings, error) {
	d, err := layout.OpenRecord("settings", b)
	if err != nil {
		return Settings{}, err
	}
	var s Settings
	if err := json.Unmarshal(d.Rest(), &s); err != nil {
		return Settings{}, fmt.Errorf("settings record: %w", err)
	}
	return s, nil
}

// applySettings sets new settings. A leader proposes only first values, from its
// flags; they are ignored once any settings were set. Otherwise a change of leader
// could undo what an operator has set.
func (x *executor) applySettings(c *Command, e *Entry, r *Result) {
	if c.Term != 0 && (c.Term != e.Term || x.settingsGiven) {
		r.Outcome = Ignored
		return
	}
	before := x.settings
	if tagged := (keyState{exists: true, mod: before.Tag()}); !command.Hold(c.Conditions, tagged.mod) {
		refuseAt(r, &tagged, PreconditionFailed, "a condition on the settings does not hold")
		return
	}
	after := c.Settings.Applied(before)
	if err := after.Validate(); err != nil {
		r.Refuse(Invalid, "%v", err)
		return
	}
	if x.onSettings != nil && (after != before || !x.settingsGiven) {
		x.onSettings(before, after, c.Origin)
	}
	x.settings, x.settingsGiven = after, true
	b := encodeSettings(&after)
	x.now.Rest += x.hasher.Settings(b) - x.hasher.Settings(encodeSettings(&before))
	x.writes.Set([]byte{layout.TableSetting}, b)
	r.Settings = &after
}
