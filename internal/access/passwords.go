package access

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/rights"
)

const (
	// maxWaiting is how many passwords of strangers may wait to be compared, and patience
	// how long each one waits.
	maxWaiting = 64
	// maxFamiliarWaiting is how many of others may wait; more are taken for strangers.
	maxFamiliarWaiting = 256
	patience           = 10 * time.Second
	// restAfterGuess is how long a place stays idle after a wrong password, as a multiple
	// of the time of the comparison: so guesses take at most a fifth of a CPU (C4).
	restAfterGuess = 4
	// maxKnown bounds the cache of correct passwords, and knownFor is how long they stay
	// in it. An entry takes about 100 bytes.
	maxKnown = 4096
	knownFor = 5 * time.Minute
	// maxPasswordBytes is the limit of bcrypt.
	maxPasswordBytes = 72
)

// nobody returns the hash of a password that nobody knows. Passwords for unknown users are
// compared with it, so that they take as long as others (C5).
func nobody(cost int) []byte {
	return fmt.Appendf(nil, "$2a$%02d$NKr2wKN3XyiOsGnNXCs9Fu/TIMh6ovgj1RN9OteSxYQB52ct9rJiq", cost)
}

// passwords compares passwords with their hashes.
//
// A user who has logged in from an address is familiar there: such a password waits for
// nothing but a CPU. All others are strangers, and may be guesses. They share the places,
// which rest after a wrong password, and a bounded number of them may wait: if more come,
// one of the address or user with the most makes room.
type passwords struct {
	cost    int
	now     func() time.Time
	compare func(hash, password []byte) error // bcrypt's
	// cpus holds an element for each running comparison or hash, and places one for each
	// stranger's, and for each place that rests after a wrong password.
	cpus, places chan struct{}
	salt         [32]byte // of this process

	// mu is never held during a comparison.
	mu struct {
		sync.Mutex
		// known has the correct passwords by digest, with the time of their comparison.
		known map[[sha256.Size]byte]time.Time
		// running has the comparisons that wait or run, by the same digest.
		running map[[sha256.Size]byte]*comparison
		// ended is closed and replaced whenever one ends.
		ended    chan struct{}
		pauses   pauses
		familiar familiar
	}
}

// comparison is one that waits or runs. err and left are written before done is closed.
type comparison struct {
	sum      [sha256.Size]byte
	user     string
	source   string // of its address
	stranger bool
	// evicted is closed if the comparison has to make room.
	evicted chan struct{}
	done    chan struct{}
	err     error
	// left says that there is no result: the client that ran it went away, or it made room.
	left bool
	// Under the mutex of passwords: whether it counts as an attempt in flight, whether it is
	// too late to make room, and whether a familiar user compares the same in its place.
	inFlight, compares, takenOver bool
}

func newPasswords(cost int, now func() time.Time) *passwords {
	if cost == 0 {
		cost = bcrypt.DefaultCost
	}
	n := runtime.GOMAXPROCS(0)
	p := &passwords{cost: cost, now: now, compare: bcrypt.CompareHashAndPassword, cpus: make(chan struct{}, n), places: make(chan struct{}, n)}
	_, _ = rand.Read(p.salt[:]) // never fails since Go 1.24
	p.mu.known, p.mu.running = map[[sha256.Size]byte]time.Time{}, map[[sha256.Size]byte]*comparison{}
	p.mu.ended, p.mu.pauses, p.mu.familiar = make(chan struct{}), newPauses(), familiar{}
	return p
}

// digest returns the key of a password in known and running. It includes the user's hash,
// so that a new password has another digest, and the length of each part.
func (p *passwords) digest(user, password string, hash []byte) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, p.salt[:])
	for _, part := range [][]byte{[]byte(user), hash, []byte(password)} {
		n := len(part)
		_, _ = h.Write([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) // never fails
		_, _ = h.Write(part)
	}
	copy(sum[:], h.Sum(nil))
	return sum
}

// verify returns the user's hash if the password is correct.
func (p *passwords) verify(ctx context.Context, t *rights.Tables, user, password, address string) ([]byte, error) {
	var hash []byte
	if u := t.User(user); u != nil {
		hash = u.Hash
	}
	sum, source := p.digest(user, password, hash), source(address)
	for {
		mine, running, err := p.begin(sum, user, source)
		switch {
		case err != nil:
			return nil, err
		case mine != nil:
			mine.err = p.work(ctx, mine, hash, password)
			if p.end(mine); mine.takenOver {
				continue
			}
			return hash, mine.err
		case running == nil:
			return hash, nil // in the cache
		}
		select {
		case <-running.done:
			if running.left {
				continue
			}
			if running.err == nil {
				p.share(user, source)
			}
			return hash, running.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// begin returns a comparison to run, or one to wait for, or neither if the password is known
// to be correct.
func (p *passwords) begin(sum [sha256.Size]byte, user, source string) (mine, running *comparison, err error) {
	now := p.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if at, ok := p.mu.known[sum]; ok && now.Sub(at) < knownFor {
		p.meetLocked(user, source, now)
		return nil, nil, nil
	}
	c := &comparison{sum: sum, user: user, source: source, evicted: make(chan struct{}), done: make(chan struct{})}
	c.stranger = !p.familiarLocked(c, now)
	if running := p.mu.running[sum]; running != nil {
		if c.stranger || !running.stranger || running.compares {
			return nil, running, nil
		}
		running.takenOver = true // or the user would wait where strangers do
		p.evictLocked(running)
	}
	if c.inFlight = !c.stranger; c.stranger {
		if err := p.pauseLocked(c, now); err != nil {
			return nil, nil, err
		}
		if !p.makeRoomLocked(c) {
			return nil, nil, noRoom()
		}
	}
	p.mu.running[sum] = c
	return c, nil, nil
}

// share records that the user logged in with the result of another client's comparison.
func (p *passwords) share(user, source string) {
	now := p.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.meetLocked(user, source, now)
}

// meetLocked makes a user familiar whose correct password was not compared for this address.
// If there were wrong ones, it would take the mark from an address at which somebody guesses.
func (p *passwords) meetLocked(user, source string, now time.Time) {
	if _, wrong := p.mu.pauses.wrong(user, source, now); wrong == 0 {
		p.mu.familiar.meet(user, source, now)
	}
}

// familiarLocked reports whether the user has logged in from the address. Of one pair, a
// single comparison at once counts as that, so that guesses gain nothing from it.
func (p *passwords) familiarLocked(c *comparison, now time.Time) bool {
	if !p.mu.familiar.has(c.user, c.source, now) {
		return false
	}
	others := 0
	for _, o := range p.mu.running {
		switch {
		case o.stranger:
		case o.user == c.user && o.source == c.source:
			return false
		default:
			others++
		}
	}
	return others < maxFamiliarWaiting
}

func (p *passwords) pauseLocked(c *comparison, now time.Time) error {
	if wait := p.mu.pauses.wait(c.user, c.source, now); wait > 0 {
		return pause(wait, "there were too many wrong passwords for this user or from this address; try again later")
	}
	return nil
}

func noRoom() error {
	return pause(time.Second, "%d passwords are waiting to be checked, which is the limit; try again later, or use a token", maxWaiting)
}

// makeRoomLocked reports whether a stranger may wait. If the limit is reached, one with the
// largest share of those that wait makes room, unless the newcomer's is larger. Among equals,
// it is an arbitrary one: if the newcomer were refused, a few requests, each sent as soon as
// the one before has ended, would keep all others out.
func (p *passwords) makeRoomLocked(c *comparison) bool {
	if len(p.mu.running) < maxWaiting {
		return true
	}
	users, sources, strangers := map[string]int{c.user: 1}, map[string]int{c.source: 1}, 0
	for _, o := range p.mu.running {
		if o.stranger {
			users[o.user]++
			sources[o.source]++
			strangers++
		}
	}
	if strangers < maxWaiting {
		return true
	}
	byShare := func(a, b *comparison) int {
		ua, sa, ub, sb := users[a.user], sources[a.source], users[b.user], sources[b.source]
		return cmp.Or(cmp.Compare(max(ua, sa), max(ub, sb)), cmp.Compare(min(ua, sa), min(ub, sb)))
	}
	var most *comparison
	for _, o := range p.mu.running {
		if o.stranger && !o.compares && (most == nil || byShare(o, most) > 0) {
			most = o
		}
	}
	if most == nil || byShare(most, c) < 0 {
		return false
	}
	p.evictLocked(most)
	return true
}

func (p *passwords) evictLocked(c *comparison) {
	delete(p.mu.running, c.sum)
	close(c.evicted)
}

// end records the result of a comparison.
func (p *passwords) end(c *comparison) {
	now := p.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.running[c.sum] == c {
		delete(p.mu.running, c.sum)
	}
	switch {
	case errors.Is(c.err, ErrBadPassword):
		p.mu.pauses.add(c.user, c.source, now)
		p.mu.familiar.drop(c.user, c.source)
	case c.err != nil: // nothing was compared
		c.left = true
	default:
		p.rememberLocked(c.sum, now)
		p.mu.familiar.add(c.user, c.source, now)
	}
	close(c.done)
	close(p.mu.ended)
	p.mu.ended = make(chan struct{})
}

func (p *passwords) rememberLocked(sum [sha256.Size]byte, now time.Time) {
	if len(p.mu.known) >= maxKnown {
		for key, at := range p.mu.known {
			if now.Sub(at) >= knownFor {
				delete(p.mu.known, key)
			}
		}
	}
	for key := range p.mu.known { // evict arbitrary entries if none was old
		if len(p.mu.known) < maxKnown {
			break
		}
		delete(p.mu.known, key)
	}
	p.mu.known[sum] = now
}

// work compares a password when its turn comes.
func (p *passwords) work(ctx context.Context, c *comparison, hash []byte, password string) error {
	ctx, cancel := patiently(ctx)
	defer cancel()
	if c.stranger {
		if err := p.admit(ctx, c); err != nil {
			return err
		}
		if err := c.enter(ctx, p.places); err != nil {
			return err
		}
	}
	took, err := p.check(ctx, c, hash, password)
	switch {
	case !c.stranger:
	case errors.Is(err, ErrBadPassword):
		time.AfterFunc(restAfterGuess*took, func() { <-p.places })
	default:
		<-p.places
	}
	return err
}

func patiently(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, patience, pause(time.Second, "other passwords are being checked; try again later, or use a token"))
}

// over returns why a context of patiently has ended.
func over(ctx context.Context) error {
	if cause := context.Cause(ctx); errors.Is(cause, ErrTooManyAttempts) {
		return cause
	}
	return ctx.Err()
}

// check compares a password on a free CPU, and returns how long that took.
func (p *passwords) check(ctx context.Context, c *comparison, hash []byte, password string) (took time.Duration, err error) {
	if err := c.enter(ctx, p.cpus); err != nil {
		return 0, err
	}
	defer func() { <-p.cpus }()
	p.mu.Lock()
	late := p.mu.running[c.sum] != c // it had to make room as it entered
	c.compares = true
	p.mu.Unlock()
	if late {
		return 0, noRoom()
	}
	known := len(hash) > 0 && len(password) <= maxPasswordBytes
	if cost, err := bcrypt.Cost(hash); err != nil || cost > rights.MaxHashCost {
		known = false
	}
	if !known {
		hash = nobody(p.cost)
	}
	start := p.now()
	err = p.compare(hash, []byte(password)[:min(len(password), maxPasswordBytes)])
	if known && err == nil {
		return 0, nil
	}
	return p.now().Sub(start), unauthenticated(ErrBadPassword, "the user or the password is wrong")
}

// admit waits until so few attempts are in flight that they cannot get beyond the number of
// wrong passwords without a pause, even if all are wrong. So nobody tries many at once before
// the first one fails, and many users behind one address only wait for each other.
func (p *passwords) admit(ctx context.Context, c *comparison) error {
	for {
		p.mu.Lock()
		if err := p.pauseLocked(c, p.now()); err != nil {
			p.mu.Unlock()
			return err
		}
		if !p.crowdedLocked(c) {
			c.inFlight = true
			p.mu.Unlock()
			return nil
		}
		ended := p.mu.ended
		p.mu.Unlock()
		select {
		case <-ended:
		case <-c.evicted:
			return noRoom()
		case <-ctx.Done():
			return over(ctx)
		}
	}
}

func (p *passwords) crowdedLocked(c *comparison) bool {
	byUser, byAddress := 0, 0
	for _, o := range p.mu.running {
		if o.inFlight && o.source == c.source {
			byAddress++
			if o.user == c.user {
				byUser++
			}
		}
	}
	wrongOfUser, wrongOfAddress := p.mu.pauses.wrong(c.user, c.source, p.now())
	return byAddress > 0 && wrongOfAddress+byAddress >= freeByAddress || byUser > 0 && wrongOfUser+byUser >= freeByUser
}

// enter waits for a free element of a channel and takes it.
func (c *comparison) enter(ctx context.Context, free chan struct{}) error {
	select {
	case free <- struct{}{}:
		return nil
	case <-c.evicted:
		return noRoom()
	case <-ctx.Done():
		return over(ctx)
	}
}

// hash returns the hash of a new password.
func (p *passwords) hash(ctx context.Context, password string) ([]byte, error) {
	switch {
	case password == "":
		return nil, api.Errorf(api.BadRequest, "the password is empty; a user without a password uses tokens or a certificate")
	case len(password) > maxPasswordBytes:
		return nil, api.Errorf(api.BadRequest, "the password has %d bytes, but bcrypt takes at most %d", len(password), maxPasswordBytes)
	}
	ctx, cancel := patiently(ctx)
	defer cancel()
	if err := new(comparison).enter(ctx, p.cpus); err != nil {
		return nil, err
	}
	defer func() { <-p.cpus }()
	return bcrypt.GenerateFromPassword([]byte(password), p.cost)
}
