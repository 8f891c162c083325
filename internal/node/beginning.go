package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/rights"
)

// beginPause is how often a member of a new cluster looks whether it has begun.
const beginPause = 20 * time.Millisecond

// announceReady waits until this node has applied its own start entry, and with it
// everything committed before, and until the cluster has its first settings, and with them
// its first rights: no member serves before. One that was told to have rights never serves
// a cluster that has none. An error means that this node must not serve.
func (m *member) announceReady(ctx context.Context) error {
	select {
	case <-m.replica.Ready():
	case <-ctx.Done():
		return nil
	}
	first, isNew := beginning{m}, !m.store.SettingsGiven()
	for !m.store.SettingsGiven() && m.cfg.Settings != (kvstore.Settings{}) {
		if err := first.begin(ctx); err != nil {
			return err
		}
		if pause(ctx, beginPause) != nil {
			return nil
		}
	}
	m.warnOfIgnoredSettings()
	late := false
	for ; first.lacksRights(); late = true {
		if err := first.addRights(ctx); err != nil {
			return err
		}
		if pause(ctx, beginPause) != nil {
			return nil
		}
	}
	if m.cfg.FirstRights != nil {
		noteFirstRights(m.lg, isNew, late, m.store.Rights().Enabled())
	}
	close(m.life.ready)
	return nil
}

// beginning is what a member does for a cluster that is not complete yet.
type beginning struct{ *member }

// lacksRights reports whether this member was told to have rights, and the cluster has
// none. If they are disabled although there is a root, somebody has disabled them.
func (m beginning) lacksRights() bool {
	now := m.store.Rights()
	return m.cfg.FirstRights != nil && !now.Enabled() && now.User(rights.Root) == nil
}

// firstRights returns the command that gives the cluster its first rights.
func (m beginning) firstRights() ([]byte, error) {
	now := m.store.Rights()
	change, err := m.cfg.FirstRights()
	if err == nil {
		change.Revision = now.Revision()
		_, _, err = now.Apply(&change) // refused later, it would leave a cluster without rights
	}
	if err != nil {
		return nil, fmt.Errorf("begin a cluster with rights: %w", err)
	}
	return kvstore.EncodeCommand(nil, &kvstore.Command{Op: kvstore.OpRights, Rights: &change}), nil
}

// addRights gives rights to a cluster that has begun without them, because its leader was
// not told to. Others may have served since, but this member has not. Several may do so at
// once: the second change is about a revision that has passed.
func (m beginning) addRights(ctx context.Context) error {
	command, err := m.firstRights()
	if err != nil {
		return err
	}
	m.proposeFirst(ctx, "rights", command)
	return nil
}

// proposeFirst has commands of the beginning applied. The caller looks at the result, and
// calls it again.
func (m beginning) proposeFirst(ctx context.Context, what string, commands ...[]byte) {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	if _, err := m.replica.ProposeGroup(ctx, commands, nil); err != nil && !errors.Is(err, raftnode.ErrStopping) {
		m.lg.Warn("the first "+what+" of the cluster were not committed; they are proposed again", zap.Error(err))
	}
}

// begin gives a new cluster the rights and the settings that its leader was started with,
// in this order: a member that has the settings has the rights. From then on both are
// replicated, and flags no longer matter.
func (m beginning) begin(ctx context.Context) error {
	pos := m.replica.Position()
	if pos.Leader != m.id {
		return nil
	}
	var commands [][]byte
	if m.lacksRights() {
		command, err := m.firstRights()
		if err != nil {
			return err
		}
		commands = append(commands, command)
	}
	commands = append(commands, kvstore.EncodeCommand(nil, &kvstore.Command{Op: kvstore.OpSettings, Term: pos.Term, Settings: m.cfg.Settings.Change()}))
	m.proposeFirst(ctx, "settings", commands...)
	return nil
}

// noteFirstRights logs what became of rights that this member was told to begin with.
func noteFirstRights(lg *zap.Logger, isNew, late, enabled bool) {
	switch {
	case !enabled:
		lg.Warn("--root-password-file has no effect: the cluster has a user root, and rights were disabled; enable them with kvd auth enable")
	case late:
		lg.Warn("rights are enabled only now: the cluster began without --root-password-file, and other members may have served anybody; give it to all initial members")
	case !isNew:
		lg.Info("--root-password-file has no effect: the cluster exists, and has rights of its own")
	default:
		lg.Info("rights are enabled since the cluster began")
	}
}

// warnOfIgnoredSettings names the settings that this node was given and that
// differ from those in force: they count only when a cluster is created, and
// an operator who restarts a node with another quota may believe to have changed it.
func (m *member) warnOfIgnoredSettings() {
	inForce := m.store.Settings()
	for _, g := range m.cfg.GivenSettings {
		value, force := g.Value(&m.cfg.Settings), g.Value(&inForce)
		if value == force || !m.store.SettingsGiven() {
			continue
		}
		m.lg.Warn(g.Flag+" has no effect: it is fixed when the cluster is created; change the replicated setting with PUT /v1/settings",
			zap.String("field", g.Field), zap.Int64("ignored", value), zap.Int64("in_force", force))
	}
}
