package main

import (
	"fmt"
	"maps"
	"slices"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/settings"
)

// reloader takes over what changed in one part of the settings, or in the
// files they name.
type reloader struct {
	name string
	take func(*settings.Settings) error
}

// reloading answers SIGHUP: it reads the settings again from where they came
// from and lets each reloader take its part. A part that fails keeps what it
// has. It belongs to the goroutine that handles signals.
type reloading struct {
	log   *zap.Logger
	again func() (*settings.Settings, error)
	given settings.Layer // at the last reading
	parts []reloader
}

// add has the function called with the settings at each reload. Its error says
// what is wrong; the name is for the log.
func (r *reloading) add(name string, take func(*settings.Settings) error) {
	r.parts = append(r.parts, reloader{name, take})
}

func (r *reloading) run() {
	s, err := r.again()
	if err != nil {
		r.log.Error("reload: the settings are wrong, and nothing was changed", zap.Error(err))
		return
	}
	var done []string
	for _, p := range r.parts {
		if err := p.take(s); err != nil {
			r.log.Error("reload: one part failed and stays as it was", zap.String("part", p.name), zap.Error(err))
			continue
		}
		done = append(done, p.name)
	}
	if late := r.needRestart(s.Given); len(late) > 0 {
		r.log.Warn("reload: these settings changed and need a restart", zap.Strings("settings", late))
	}
	r.given = s.Given
	r.log.Info("reloaded", zap.Strings("parts", done))
}

// needRestart names the settings that changed and that no part takes over.
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
