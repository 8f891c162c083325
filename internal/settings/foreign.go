package settings

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// This file and refused.go hold the names that kvd accepts or answers for
// beside those of the settings table, almost all of them etcd's. Each name is
// one of three things:
//
//   - an alias, which means the same as a setting;
//   - an ignored name, which changes nothing here and harms nobody. Only names
//     that kubeadm, Kubespray or common unit files pass are on this list, so
//     that those start without edits;
//   - a refused name, which is an error that gives the reason. Accepting it
//     silently would let an operator believe that it works.
//
// etcd's file uses the same names, and so do KVD_ environment variables, so
// all three origins are judged here, in Layer.translate.

// alias is another name of a setting.
type alias struct {
	name    string
	setting string
	// convert turns the text into the setting's form. A nil convert keeps the
	// text; a result of "" leaves the setting alone.
	convert func(text string) (string, error)
	bare    string // what the name alone stands for; "" if it needs a value
}

var aliases = []alias{
	{name: "initial-cluster", setting: "cluster"},
	{name: "initial-cluster-state", setting: "join", convert: clusterState},
	{name: "initial-cluster-token", setting: "cluster-token"},
	{name: "listen-client-urls", setting: "listen-client"},
	{name: "listen-peer-urls", setting: "listen-peer"},
	{name: "listen-metrics-urls", setting: "listen-metrics"},
	{name: "advertise-client-urls", setting: "advertise-client"},
	{name: "initial-advertise-peer-urls", setting: "advertise-peer"},
	{name: "quota-backend-bytes", setting: "quota", convert: backendQuota},
	{name: "experimental-watch-progress-notify-interval", setting: "watch-progress-notify-interval"},
	{name: "cert-file", setting: "tls-cert-file"},
	{name: "key-file", setting: "tls-key-file"},
	{name: "trusted-ca-file", setting: "tls-ca-file"},
	{name: "client-cert-auth", setting: "tls-client-auth", bare: "true", convert: clientCertAuth},
	{name: "client-crl-file", setting: "tls-crl-file"},
	{name: "peer-trusted-ca-file", setting: "peer-ca-file"},
	{name: "enable-pprof", setting: "pprof", bare: "true"},
	{name: "checkpoint-bytes", setting: "snapshot-checkpoint-bytes"},
	{name: "catch-up-bytes", setting: "snapshot-catch-up-bytes"},
}

// ignored is a name of etcd's that has no effect in kvd.
type ignored struct {
	name   string
	bare   string   // as in alias; a name with one is a switch, ignored both on and off
	values []string // the values of other names that change nothing; nil for any
	reason string
}

// ignoredNames lists what deployments of etcd really pass:
//
//   - kubeadm's static pod (cmd/kubeadm/app/phases/etcd/local.go), including
//     the experimental names it used before Kubernetes 1.34;
//   - Kubespray's etcd.env, which still says ETCD_PROXY=off;
//   - the command lines in etcd's documentation and the unit files derived
//     from them.
//
// etcd's own contrib/systemd unit sets only the name and the data directory.
var ignoredNames = []ignored{
	{name: "snapshot-count", reason: "the log is bounded in bytes, not entries (--snapshot-checkpoint-bytes)"},
	{name: "max-snapshots", reason: "kvd removes files that it no longer needs"},
	{name: "max-wals", reason: "kvd removes files that it no longer needs"},
	{name: "auto-compaction-mode", reason: "history is compacted continuously, by age, count, and size"},
	{name: "auto-compaction-retention", reason: "history is compacted continuously, by age, count, and size"},
	{name: "strict-reconfig-check", bare: "true", reason: "membership changes are always checked"},
	{name: "peer-client-cert-auth", bare: "true", reason: "members with TLS always verify each other's certificates"},
	{name: "feature-gates", values: []string{"InitialCorruptCheck=true"}, reason: "kvd always checks its data at startup and has no other feature gates"},
	{name: "experimental-initial-corrupt-check", bare: "true", reason: "kvd always checks its data at startup"},
	{name: "metrics", values: []string{"basic", "extensive"}, reason: "kvd always serves all metrics"},
	{name: "proxy", values: []string{"off"}, reason: "every node serves every request; there is no proxy mode"},
	{name: "logger", values: []string{"zap"}, reason: "zap is the only logger"},
	{name: "log-outputs", values: []string{"default", "stderr"}, reason: "the log goes to standard error; redirect it with the service manager"},
}

// find returns the element of list that has the name, or nil.
func find[T any](list []T, name string, nameOf func(*T) string) *T {
	for i := range list {
		if nameOf(&list[i]) == name {
			return &list[i]
		}
	}
	return nil
}

func aliasNamed(name string) *alias {
	return find(aliases, name, func(a *alias) string { return a.name })
}

func ignoredNamed(name string) *ignored {
	return find(ignoredNames, name, func(i *ignored) string { return i.name })
}

// canonical returns the name of the setting that name stands for, which is
// name itself unless it is an alias.
func canonical(name string) string {
	if a := aliasNamed(name); a != nil {
		return a.setting
	}
	return name
}

// known reports whether Layer.translate has an answer for the name.
func known(name string) bool {
	return settingNamed(name) != nil || aliasNamed(name) != nil || ignoredNamed(name) != nil || refusedNamed(name) != nil
}

// acceptedNames returns every name that can set something.
func acceptedNames() []string {
	var names []string
	for i := range table {
		names = append(names, table[i].name)
	}
	for i := range aliases {
		names = append(names, aliases[i].name)
	}
	return names
}

// allNames returns every known name, each once.
func allNames() []string {
	names := acceptedNames()
	for i := range ignoredNames {
		names = append(names, ignoredNames[i].name)
	}
	for i := range refusals {
		names = append(names, refusals[i].names...)
	}
	return names
}

// translate returns the layer under the names of the settings table, and notes
// for the log about what was accepted without effect. Refused and contradictory
// names are added to p.
func (l Layer) translate(p *problemList) (own Layer, notes []string) {
	own = make(Layer)
	for _, name := range slices.Sorted(maps.Keys(l)) {
		g := l[name]
		if i := ignoredNamed(name); i != nil {
			note, err := i.judge(g)
			if err != nil {
				*p = append(*p, err)
			} else {
				notes = append(notes, note)
			}
			continue
		}
		if r := refusedNamed(name); r != nil {
			*p = append(*p, r.refuse(name, g))
			continue
		}
		text, err := aliasNamed(name).translate(g.Text)
		if err != nil {
			p.add("%s: %w", describe(name, g.Origin), err)
		} else if text != "" || name == canonical(name) {
			own.merge(canonical(name), Given{Text: text, Origin: g.Origin}, p)
		}
	}
	return own, notes
}

// merge adds a setting, which may be there already under another name. Two
// names with the same text are accepted: generated configurations repeat
// themselves.
func (l Layer) merge(name string, g Given, p *problemList) {
	if before, ok := l[name]; ok && before.Text != g.Text {
		p.add("%s and %s both set --%s, to different values; remove one of them", before.Origin, g.Origin, name)
		return
	}
	l[name] = g
}

// translate returns the text in the form of the setting. A nil alias stands for
// the setting's own name.
func (a *alias) translate(text string) (string, error) {
	if a == nil || a.convert == nil || text == "" {
		return text, nil
	}
	return a.convert(text)
}

// judge returns a note if the value changes nothing, and an error if it asks
// for something that kvd does not do.
func (i *ignored) judge(g Given) (note string, err error) {
	for part := range strings.SplitSeq(g.Text, ",") {
		if !i.ignores(strings.TrimSpace(part)) {
			return "", fmt.Errorf("%s: %q is not supported: %s", describe(i.name, g.Origin), g.Text, i.reason)
		}
	}
	return fmt.Sprintf("%s has no effect: %s", describe(i.name, g.Origin), i.reason), nil
}

// ignores reports whether the value changes nothing. A switch is read as etcd
// reads it: Kubespray, written in Ansible, says "True".
func (i *ignored) ignores(value string) bool {
	if i.bare != "" {
		_, err := strconv.ParseBool(value)
		return err == nil
	}
	return i.values == nil || slices.Contains(i.values, value)
}

// clusterState: etcd's "existing" is raftexample's bare --join.
func clusterState(text string) (string, error) {
	switch text {
	case "new":
		return "false", nil
	case "existing":
		return "true", nil
	}
	return "", fmt.Errorf("%q is not one of new, existing", text)
}

// backendQuota: in etcd 0 means the default and a negative number no quota. A
// text that is not a number may be one of kvd's sizes, and is left to its
// parser.
func backendQuota(text string) (string, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil:
		return text, nil
	case n == 0:
		return "", nil
	case n < 0:
		return "0", nil
	}
	return text, nil
}

// clientCertAuth: "false" leaves the setting alone rather than turning it off.
// etcd verifies client certificates against a CA even without the switch, and so
// does kvd's default.
func clientCertAuth(text string) (string, error) {
	on, err := strconv.ParseBool(text)
	switch {
	case err != nil:
		return "", fmt.Errorf("%q is neither true nor false", text)
	case on:
		return "require", nil
	}
	return "", nil
}
