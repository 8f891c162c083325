package access

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/rights"
)

// slowly makes comparisons take virtual time, and counts them.
func slowly(p *passwords, right string, took time.Duration) (compared *int) {
	compared = new(int)
	var mu sync.Mutex
	p.now = time.Now
	p.compare = func(_, password []byte) error {
		mu.Lock()
		*compared++
		mu.Unlock()
		time.Sleep(took)
		if string(password) != right {
			return bcrypt.ErrMismatchedHashAndPassword
		}
		return nil
	}
	return compared
}

// TestGuessesTakeAFifth: with guesses from everywhere at once, places rest (C4).
func TestGuessesTakeAFifth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.enable()
		p := b.gate.passwords
		compared := slowly(p, "right", time.Second)
		const minutes = 2
		ctx, cancel := context.WithTimeout(t.Context(), minutes*time.Minute)
		defer cancel()
		var all sync.WaitGroup
		for i := range 2 * maxWaiting {
			all.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					_, err := p.verify(ctx, b.tables, fmt.Sprint(i, n), "wrong", fmt.Sprintf("2001:db8:%x:%x::1", i, n))
					if err == nil {
						t.Error("a guess was right")
					}
					time.Sleep(time.Second) // which the clock needs to go on
				}
			})
		}
		all.Wait()
		if most := minutes * 60 / (1 + restAfterGuess) * cap(p.places); *compared > most+2*cap(p.places) || *compared < most/2 {
			t.Errorf("%d comparisons of a second in %d minutes on %d CPUs, want about %d", *compared, minutes, cap(p.places), most)
		}
	})
}

// TestNobodyIsLockedOut: guesses pause the user only where they come from (C4).
func TestNobodyIsLockedOut(t *testing.T) {
	b := newBench(t, Options{})
	b.enable()
	try := func(user, password, from string) time.Duration {
		t.Helper()
		_, _, err := b.gate.Login(t.Context(), user, password, from)
		var e *api.Error
		switch {
		case err == nil:
			return 0
		case errors.Is(err, ErrBadPassword):
			return -1
		case errors.Is(err, ErrTooManyAttempts) && errors.As(err, &e) && e.Code == api.Overloaded:
			return e.RetryAfter
		}
		t.Fatal(err)
		return 0
	}
	for i := range freeByUser {
		if got := try("ann", "wrong", "10.0.0.1:1"); got != -1 {
			t.Fatalf("guess %d: %v", i, got)
		}
	}
	for want := firstPause; ; want = min(2*want, longestPause) {
		if got := try("ann", "wrong", "10.0.0.1:2"); got != want { // another port is the same address
			t.Fatalf("pause of %v, want %v", got, want)
		}
		if got := try("ann", "pa:ss", "10.0.0.2:1"); got != 0 {
			t.Fatalf("from elsewhere: %v", got)
		}
		if b.now = b.now.Add(want); want == longestPause {
			break
		}
		if got := try("ann", "wrong", "10.0.0.1:3"); got != -1 {
			t.Fatalf("after the pause: %v", got)
		}
	}
	if got := try("root", "secret", "10.0.0.1:4"); got != 0 {
		t.Errorf("another user: %v", got)
	}
	if got := try("ann", "pa:ss", "10.0.0.1:5"); got != 0 {
		t.Errorf("the password that is known to be right: %v", got)
	}
	// One address and many users.
	for i := range freeByAddress {
		_ = try(fmt.Sprint("user", i), "wrong", "[2001:db8::1]:1")
	}
	if got := try("someone", "wrong", "[2001:db8::2]:1"); got != firstPause {
		t.Errorf("one address guesses many users: %v", got)
	}
	if got := try("someone", "wrong", "[2001:db8:0:1::2]:1"); got != -1 {
		t.Errorf("another network: %v", got)
	}
	b.now = b.now.Add(forgetAfter + 1)
	if got := try("someone", "wrong", "[2001:db8::2]:1"); got != -1 {
		t.Errorf("after a long time: %v", got)
	}
}

// TestManyAtOnce: what is tried at the same time counts before the first answer, and one
// password is compared once.
func TestManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.enable()
		compared := slowly(b.gate.passwords, "right", time.Millisecond)
		var all sync.WaitGroup
		refused := 0
		var mu sync.Mutex
		for i := range 50 {
			all.Go(func() {
				_, err := b.gate.passwords.verify(t.Context(), b.tables, "ann", "right", address)
				if err != nil {
					t.Error(err)
				}
				if _, err = b.gate.passwords.verify(t.Context(), b.tables, "ann", fmt.Sprint("wrong", i), address); errors.Is(err, ErrTooManyAttempts) {
					mu.Lock()
					refused++
					mu.Unlock()
				}
			})
		}
		all.Wait()
		if *compared != 1+freeByUser || refused != 50-freeByUser {
			t.Errorf("%d comparisons, %d refused", *compared, refused)
		}
		b.role("other", rights.Read, "x", "")
		b.user("bob", "another")
		if _, err := b.gate.passwords.verify(t.Context(), b.tables, "ann", "right", "10.9.9.9"); err != nil || *compared != 1+freeByUser {
			t.Errorf("a change of others' rights empties the cache: %v, %d comparisons", err, *compared)
		}
		b.user("ann", "right", "as") // another hash of the same password
		if _, err := b.gate.passwords.verify(t.Context(), b.tables, "ann", "right", "10.9.9.9"); err != nil || *compared != 2+freeByUser {
			t.Errorf("after a change of the password: %v, %d comparisons", err, *compared)
		}
	})
}

// TestClientThatLeaves: a client that waits for the comparison of another one that goes away has it
// done themselves.
func TestClientThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.enable()
		p := b.gate.passwords
		_ = slowly(p, "right", time.Second)
		for range cap(p.cpus) {
			p.cpus <- struct{}{}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := p.verify(ctx, b.tables, "ann", "right", address); !errors.Is(err, context.Canceled) {
				t.Errorf("the first client: %v", err)
			}
		})
		synctest.Wait()
		all.Go(func() {
			if _, err := p.verify(t.Context(), b.tables, "ann", "right", address); err != nil {
				t.Errorf("the second client: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		for range cap(p.cpus) {
			<-p.cpus
		}
		all.Wait()
		if len(p.places)+len(p.cpus) != 0 || len(p.mu.running) != 0 || len(p.mu.pauses.users)+len(p.mu.pauses.address) != 0 {
			t.Errorf("%+v is left", &p.mu)
		}
	})
}

// TestManyUsersOfOneAddress: the right passwords of many users who log in at once from one
// address do not count as wrong ones, whether they have logged in there before or not.
func TestManyUsersOfOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.enable()
		const users = 3 * freeByAddress
		p := b.gate.passwords
		compared := slowly(p, "right", time.Millisecond)
		for i := range users {
			b.user(fmt.Sprint("user", i), "right")
		}
		for round := range 2 {
			var all sync.WaitGroup
			for i := range users {
				all.Go(func() {
					if _, err := p.verify(t.Context(), b.tables, fmt.Sprint("user", i), "right", address); err != nil {
						t.Errorf("round %d, user %d: %v", round, i, err)
					}
				})
			}
			all.Wait()
			clear(p.mu.known) // as if it were later
		}
		if *compared != 2*users {
			t.Errorf("%d comparisons", *compared)
		}
	})
}

// TestManyGuessesOfOneAddress: nobody tries more passwords at once than without a pause.
func TestManyGuessesOfOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.enable()
		p := b.gate.passwords
		compared := slowly(p, "right", time.Millisecond)
		var all sync.WaitGroup
		for i := range maxWaiting {
			all.Go(func() { _, _ = p.verify(t.Context(), b.tables, fmt.Sprint("user", i), "wrong", address) })
		}
		all.Wait()
		if *compared != freeByAddress {
			t.Errorf("%d comparisons, want %d", *compared, freeByAddress)
		}
	})
}

// flood keeps n strangers waiting, each with a name and an address of its own that the
// function gives, until the test ends.
func flood(t *testing.T, b *bench, n int, who func(i, attempt int) (user, address string)) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			for attempt := 0; ctx.Err() == nil; attempt++ {
				user, address := who(i, attempt)
				_, _ = b.gate.passwords.verify(ctx, b.tables, user, fmt.Sprint("wrong", i, attempt), address)
				time.Sleep(time.Second)
			}
		})
	}
	synctest.Wait()
	return func() { cancel(); all.Wait() }
}

// TestFloodKeepsNoFriendOut: somebody who has logged in from an address does so again at
// once, whoever guesses meanwhile, there and elsewhere (C4).
func TestFloodKeepsNoFriendOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		b.enable()
		p := b.gate.passwords
		_ = slowly(p, "right", time.Second)
		login := func(password string) error {
			p.mu.Lock()
			clear(p.mu.known)
			p.mu.Unlock()
			_, err := p.verify(t.Context(), b.tables, "ann", password, address)
			return err
		}
		if err := login("right"); err != nil {
			t.Fatal(err)
		}
		end := flood(t, b, 2*maxWaiting, func(i, n int) (string, string) {
			if i%2 == 0 {
				return fmt.Sprint("x", i, n), address
			}
			return fmt.Sprint("x", i, n), fmt.Sprintf("2001:db8:%x:%x::1", i, n)
		})
		for range 5 {
			start := time.Now()
			if err := login("right"); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("logging in took %v", took)
			}
			time.Sleep(time.Minute)
		}
		if err := login("wrong"); !errors.Is(err, ErrBadPassword) {
			t.Errorf("a wrong password: %v", err)
		}
		if err := login("right"); !errors.Is(err, ErrTooManyAttempts) {
			t.Errorf("one wrong password makes a stranger of a friend: %v", err)
		}
		end()
	})
}

// TestFairShare: neither an address nor a user keeps strangers from waiting who come from
// elsewhere, whoever they are. If the others have more in common than the user, they do not
// get the place back either (C4).
func TestFairShare(t *testing.T) {
	const crowded = "10.0.0.1:1"
	oneUser := func(i, n int) (string, string) { return "root", fmt.Sprintf("2001:db8:%x:%x::1", i, n) }
	for name, c := range map[string]struct {
		flood      func(i, n int) (user, address string)
		user, from string
		stays      bool
	}{
		"one address":                 {func(i, n int) (string, string) { return fmt.Sprint("x", i, n), crowded }, "ann", address, true},
		"one address, the same":       {func(i, _ int) (string, string) { return fmt.Sprint("x", i%32), crowded }, "ann", crowded, true},
		"one user":                    {oneUser, "ann", address, true},
		"one user, the same":          {oneUser, "root", address, false},
		"one user, the same, from 32": {func(i, _ int) (string, string) { return "root", fmt.Sprintf("10.0.0.%d", i%32) }, "root", address, true},
		"all different": {func(i, n int) (string, string) {
			return fmt.Sprint("x", i, n), fmt.Sprintf("2001:db8:%x:%x::1", i, n)
		}, "ann", address, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, Options{})
				b.enable()
				p := b.gate.passwords
				_ = slowly(p, "right", 10*time.Millisecond)
				endPlaces := fill(p.places) // nothing goes on
				end := flood(t, b, 2*maxWaiting, c.flood)
				done := make(chan error)
				go func() {
					_, err := p.verify(t.Context(), b.tables, c.user, "right", c.from)
					done <- err
				}()
				if synctest.Wait(); c.stays {
					time.Sleep(patience / 2)
				}
				sum := p.digest(c.user, "right", b.tables.User(c.user).Hash)
				p.mu.Lock()
				waits, n := p.mu.running[sum] != nil, len(p.mu.running)
				p.mu.Unlock()
				if !waits || n != maxWaiting {
					t.Errorf("%d wait, the newcomer among them: %v", n, waits)
				}
				end()
				endPlaces()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestPausesAreBounded: nobody fills the memory with names and addresses (C4).
func TestPausesAreBounded(t *testing.T) {
	p, now := newPauses(), time.UnixMilli(0)
	for i := range 3 * maxPauses {
		p.add(fmt.Sprint("user", i), fmt.Sprintf("2001:db8:%x:%x::1", i>>16, i&0xffff), now.Add(time.Duration(i)))
	}
	if len(p.users) > maxPauses || len(p.address) > maxPauses {
		t.Errorf("%d users, %d addresses", len(p.users), len(p.address))
	}
}

// TestUnknownUserTakesAsLong: the hash in place of a user's is as expensive (C5).
func TestUnknownUserTakesAsLong(t *testing.T) {
	b := newBench(t, Options{})
	b.enable()
	b.user("no-password", "")
	var hashes []string
	b.gate.passwords.compare = func(hash, _ []byte) error { hashes = append(hashes, string(hash)); return nil }
	for _, user := range []string{"nobody", "no-password"} {
		if _, _, err := b.gate.Login(t.Context(), user, "x", address); !errors.Is(err, ErrBadPassword) {
			t.Errorf("%s: %v", user, err)
		}
	}
	if len(hashes) != 2 {
		t.Errorf("compared %q", hashes)
	}
	for _, hash := range hashes {
		if cost, err := bcrypt.Cost([]byte(hash)); err != nil || cost != bcrypt.MinCost {
			t.Errorf("cost %d, %v", cost, err)
		}
	}
}

// TestHash: what Hash makes, verify takes.
func TestHash(t *testing.T) {
	b := newBench(t, Options{})
	for password, ok := range map[string]bool{"": false, "x": true, string(make([]byte, 73)): false} {
		if hash, err := b.gate.Hash(t.Context(), password); (err == nil) != ok || ok && bcrypt.CompareHashAndPassword(hash, []byte(password)) != nil {
			t.Errorf("%q: %q, %v", password, hash, err)
		}
	}
}
