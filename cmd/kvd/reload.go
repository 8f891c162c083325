package main

import (
	"fmt"
	"maps"
	"slices"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/settings"
)

// reloader applies the changes in one part of the settings, or in the files that
// they name.
type reloader struct {
	name string
	take func(*settings.Settings) error
}

// reloading handles SIGHUP: it reads the settings again from their origins and
// has each reloader apply its part. A part that fails keeps its old state: a
// node that serves with the old certificate is better than one that does not.
// The goroutine that handles signals owns it.
type reloading struct {
	log   *zap.Logger
	again func() (*settings.Settings, error)
	given settings.Layer // when they were last read
	parts []reloader
}

// add has the function called with the settings at each reload. The name is
// logged; if it is that of a setting, that setting needs no restart.
func (r *reloading) add(name string, take func(*settings.Settings) error) {
	r.parts = append(r.parts, reloader{name, take})
}

// run reads the settings and applies them part by part. If they are invalid as a
// whole, no part is applied: half of a configuration that nobody wrote would be
// in effect.
func (r *reloading) run() {
	s, err := r.again()
	if err != nil {
		r.log.Error("reload failed: invalid settings, nothing was changed", zap.Error(err))
		return
	}
	var done []string
	for _, p := range r.parts {
		if err := p.take(s); err != nil {
			r.log.Error("reload failed for one part, which is unchanged", zap.String("part", p.name), zap.Error(err))
			continue
		}
		done = append(done, p.name)
	}
	if late := r.needRestart(s.Given); len(late) > 0 {
		r.log.Warn("changed settings need a restart", zap.Strings("settings", late))
	}
	r.given = s.Given
	r.log.Info("reloaded", zap.Strings("parts", done))
}

// needRestart returns the settings that changed and that no part applies.
func (r *reloading) needRestart(now settings.Layer) (names []string) {
	changed := make(map[string]bool)
	for _, l := range []settings.Layer{r.given, now} {
		for name := range l {
			changed[name] = r.given[name].Text != now[name].Text
		}
	}
	for _, name := range slices.Sorted(maps.Keys(changed)) {
		taken := slices.ContainsFunc(r.parts, func(p reloader) bool { return p.name == name })
		if changed[name] && !taken {
			names = append(names, fmt.Sprint("--", name))
		}
	}
	return names
}
