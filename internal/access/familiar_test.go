package access

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const elsewhere = "10.9.9.9"

// fill takes all elements of a channel, so that nobody else enters.
func fill(free chan struct{}) (end func()) {
	for range cap(free) {
		free <- struct{}{}
	}
	return func() {
		for range cap(free) {
			<-free
		}
	}
}

func (p *passwords) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.mu.known)
}

// withFriend returns passwords that take a second to compare, and know ann from address but
// no password. compared counts the comparisons.
func withFriend(t *testing.T) (b *bench, p *passwords, compared *int) {
	t.Helper()
	b = newBench(t, Options{})
	b.enable()
	p = b.gate.passwords
	compared = slowly(p, "right", time.Second)
	if _, err := p.verify(t.Context(), b.tables, "ann", "right", address); err != nil {
		t.Fatal(err)
	}
	p.forget()
	return b, p, compared
}

// TestFriendTakesOver: a familiar user does not wait for the same password of a stranger that
// waits, and the stranger gets the result too (C4).
func TestFriendTakesOver(t *testing.T) {
	for name, queue := range map[string]func(p *passwords) chan struct{}{
		"the stranger waits for a place": func(p *passwords) chan struct{} { return p.places },
		"the stranger waits for a CPU":   func(p *passwords) chan struct{} { return p.cpus },
	} {
		for _, leaves := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, the friend leaves %v", name, leaves), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b, p, compared := withFriend(t)
					endQueue := fill(queue(p))
					var all sync.WaitGroup
					all.Go(func() {
						if _, err := p.verify(t.Context(), b.tables, "ann", "right", elsewhere); err != nil {
							t.Errorf("the stranger: %v", err)
						}
					})
					synctest.Wait()
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					friend := make(chan error, 1)
					all.Go(func() {
						_, err := p.verify(ctx, b.tables, "ann", "right", address)
						friend <- err
					})
					synctest.Wait()
					switch {
					case leaves:
						cancel()
						if err := <-friend; err != nil && !errors.Is(err, context.Canceled) {
							t.Errorf("the friend who leaves: %v", err)
						}
						synctest.Wait()
						endQueue()
					case queue(p) == p.places: // the friend passes by the queue
						start := time.Now()
						if err := <-friend; err != nil || time.Since(start) > time.Second {
							t.Errorf("the friend after %v: %v", time.Since(start), err)
						}
						all.Wait()
						endQueue()
					default:
						endQueue()
						if err := <-friend; err != nil {
							t.Errorf("the friend: %v", err)
						}
					}
					all.Wait()
					if *compared != 2 {
						t.Errorf("%d comparisons, want one after the first", *compared)
					}
					if len(p.places)+len(p.cpus)+len(p.mu.running) != 0 {
						t.Errorf("%d places, %d CPUs are taken, %d run", len(p.places), len(p.cpus), len(p.mu.running))
					}
				})
			})
		}
	}
}

// TestFriendWaitsForAComparison: what is being compared is not compared twice.
func TestFriendWaitsForAComparison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, p, compared := withFriend(t)
		var all sync.WaitGroup
		for _, from := range []string{elsewhere, address} {
			all.Go(func() {
				if _, err := p.verify(t.Context(), b.tables, "ann", "right", from); err != nil {
					t.Errorf("from %s: %v", from, err)
				}
			})
			synctest.Wait()
		}
		all.Wait()
		if *compared != 2 {
			t.Errorf("%d comparisons, want 2", *compared)
		}
	})
}

// TestEveryLoginMakesFamiliar: with a cached password, and with the result of another client, a
// user becomes familiar too, but not at an address with wrong passwords (C4).
func TestEveryLoginMakesFamiliar(t *testing.T) {
	for name, c := range map[string]struct {
		guess, atOnce, want bool
	}{
		"cached": {want: true}, "shared": {atOnce: true, want: true},
		"cached, after a guess": {guess: true}, "shared, after a guess": {guess: true, atOnce: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, Options{})
				b.enable()
				p := b.gate.passwords
				_ = slowly(p, "right", time.Second)
				if c.guess { // another user's password counts too
					if _, err := p.verify(t.Context(), b.tables, "root", "wrong", elsewhere); !errors.Is(err, ErrBadPassword) {
						t.Fatal(err)
					}
					time.Sleep((1 + restAfterGuess) * time.Second)
				}
				var all sync.WaitGroup
				for _, from := range []string{address, elsewhere} {
					all.Go(func() {
						if _, err := p.verify(t.Context(), b.tables, "ann", "right", from); err != nil {
							t.Errorf("from %s: %v", from, err)
						}
					})
					if synctest.Wait(); !c.atOnce {
						all.Wait()
					}
				}
				all.Wait()
				p.forget()
				end := fill(p.places) // which only strangers need
				_, err := p.verify(t.Context(), b.tables, "ann", "right", elsewhere)
				if familiar := err == nil; familiar != c.want || !familiar && !errors.Is(err, ErrTooManyAttempts) {
					t.Errorf("familiar: %v, want %v (%v)", familiar, c.want, err)
				}
				end()
			})
		})
	}
}

// TestFamiliarIsBounded: the memory of logins is bounded in number and time, and logins that
// cost nothing displace no others.
func TestFamiliarIsBounded(t *testing.T) {
	f, now := familiar{}, time.UnixMilli(0)
	for i := range maxFamiliar + 10 {
		f.add("ann", fmt.Sprint(i), now)
	}
	if len(f) != maxFamiliar {
		t.Errorf("%d are remembered", len(f))
	}
	f.add("ann", "here", now)
	if !f.has("ann", "here", now.Add(familiarFor-1)) || f.has("ann", "here", now.Add(familiarFor)) || f.has("bob", "here", now) {
		t.Error("the wrong ones are remembered")
	}
	f.meet("bob", "here", now)
	f.meet("ann", "here", now.Add(1))
	if len(f) != maxFamiliar || f.has("bob", "here", now) || !f.has("ann", "here", now.Add(familiarFor)) {
		t.Errorf("%d are remembered after logins without a comparison", len(f))
	}
	f.meet("bob", "here", now.Add(familiarFor+1))
	if len(f) != maxFamiliar || !f.has("bob", "here", now.Add(familiarFor+1)) {
		t.Error("nobody takes the place of one that is old")
	}
}
