package access

import (
	"hash/maphash"
	"net/netip"
	"time"
)

const (
	// freeByUser and freeByAddress are how many wrong passwords are allowed without a
	// pause. Many users may share an address.
	freeByUser    = 5
	freeByAddress = 20
	// firstPause follows the first one beyond; each further one doubles it up to
	// longestPause.
	firstPause   = time.Second
	longestPause = time.Minute
	// forgetAfter is how long wrong passwords are remembered after the last one.
	forgetAfter = 10 * time.Minute
	// maxPauses bounds each table of wrong passwords. An entry takes about 64 bytes.
	maxPauses = 8192
	// maxFamiliar bounds the pairs of user and address that logged in, and familiarFor is how
	// long they are remembered. An entry takes at most about 400 bytes.
	maxFamiliar = 4096
	familiarFor = 24 * time.Hour
)

// pauses slow down password guessing. Wrong passwords are counted by address and by user,
// and each makes the pause longer. The pause of a user applies only to addresses with wrong
// passwords of their own: an attacker from elsewhere cannot lock the user out, and gets one
// attempt from each address.
type pauses struct {
	seed    maphash.Seed
	users   map[uint64]*wrong
	address map[uint64]*wrong
}

// wrong counts the wrong passwords of a user or an address.
type wrong struct {
	count int
	last  time.Time
}

func newPauses() pauses {
	return pauses{seed: maphash.MakeSeed(), users: map[uint64]*wrong{}, address: map[uint64]*wrong{}}
}

// wait returns how long an attempt has to wait.
func (p *pauses) wait(user, source string, now time.Time) time.Duration {
	from := p.address[p.key(source)]
	if from == nil || from.count == 0 {
		return 0
	}
	wait := from.wait(freeByAddress, now)
	if u := p.users[p.key(user)]; u != nil {
		wait = max(wait, u.wait(freeByUser, now))
	}
	return wait
}

func (w *wrong) wait(free int, now time.Time) time.Duration {
	if w.count < free {
		return 0
	}
	pause := longestPause
	if n := w.count - free; n < 10 {
		pause = min(firstPause<<n, longestPause)
	}
	return max(0, w.last.Add(pause).Sub(now))
}

// add counts a wrong password.
func (p *pauses) add(user, source string, now time.Time) {
	count(p.users, p.key(user), now)
	count(p.address, p.key(source), now)
}

// wrong returns how many wrong passwords count by user and by address.
func (p *pauses) wrong(user, source string, now time.Time) (ofUser, ofAddress int) {
	return p.users[p.key(user)].remembered(now), p.address[p.key(source)].remembered(now)
}

func (w *wrong) remembered(now time.Time) int {
	if w == nil || now.Sub(w.last) > forgetAfter {
		return 0
	}
	return w.count
}

func count(table map[uint64]*wrong, key uint64, now time.Time) {
	w := table[key]
	if w.remembered(now) == 0 {
		makeRoom(table)
		w = new(wrong)
		table[key] = w
	}
	w.count++
	w.last = now
}

// makeRoom removes the oldest of a few entries from a full table.
func makeRoom(table map[uint64]*wrong) {
	if len(table) < maxPauses {
		return
	}
	const few = 8
	seen, oldest := 0, uint64(0)
	for key, w := range table {
		if seen == 0 || w.last.Before(table[oldest].last) {
			oldest = key
		}
		if seen++; seen == few {
			break
		}
	}
	delete(table, oldest)
}

// key hashes a name, so that entries have a fixed size.
func (p *pauses) key(text string) uint64 { return maphash.String(p.seed, text) }

// familiar has the time of the last login by user and address.
type familiar map[acquaintance]time.Time

type acquaintance struct{ user, source string }

func (f familiar) has(user, source string, now time.Time) bool {
	at, ok := f[acquaintance{user, source}]
	return ok && now.Sub(at) < familiarFor
}

// add remembers a login. Only users who exist get in here, with their own password.
func (f familiar) add(user, source string, now time.Time) {
	pair := acquaintance{user, source}
	if !f.hasRoom(pair, now) {
		for other := range f { // an arbitrary one
			delete(f, other)
			break
		}
	}
	f[pair] = now
}

// meet remembers a login that took no comparison, and so cost nothing: such logins do not
// make others forgotten.
func (f familiar) meet(user, source string, now time.Time) {
	if pair := (acquaintance{user, source}); f.hasRoom(pair, now) {
		f[pair] = now
	}
}

// hasRoom reports whether a pair can be added. In a full table, it looks at a few of the
// others, and removes one that is old.
func (f familiar) hasRoom(pair acquaintance, now time.Time) bool {
	if _, ok := f[pair]; ok || len(f) < maxFamiliar {
		return true
	}
	const few = 8
	seen := 0
	for other, at := range f {
		if now.Sub(at) >= familiarFor {
			delete(f, other)
			return true
		}
		if seen++; seen == few {
			break
		}
	}
	return false
}

func (f familiar) drop(user, source string) { delete(f, acquaintance{user, source}) }

// source returns the unit in which an address is counted: an IPv4 address, or the /64 prefix
// of an IPv6 address, in which a client can choose addresses at will.
func source(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		port, err := netip.ParseAddrPort(address)
		if err != nil {
			return address
		}
		ip = port.Addr()
	}
	if ip = ip.Unmap(); ip.Is6() {
		prefix, _ := ip.WithZone("").Prefix(64) // 64 is a valid length
		return prefix.String()
	}
	return ip.String()
}
