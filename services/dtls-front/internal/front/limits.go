package front

import (
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits bound what one source, and all of them together, can make the front do.
type Limits struct {
	// Sessions that are open at a time.
	Sessions int
	// Handshakes that are kept of peers that have not returned their cookie; a further one costs the oldest.
	Unproven int
	// Handshakes that are under way at a time, of peers that have.
	Handshakes int
	// Handshakes of one source address that has been proven, in a second and at once.
	HandshakesPerSecond rate.Limit
	HandshakeBurst      int
	// Datagrams of one session that are relayed in a second, and at once.
	DatagramsPerSecond rate.Limit
	DatagramBurst      int
	// Sources that are remembered for the limits above.
	Sources int
	// Sessions of one identity that are open at a time; a new one ends the oldest.
	SessionsPerIdentity int
	HandshakeTimeout    time.Duration
	// A session without a datagram for so long is ended.
	Idle time.Duration
}

// DefaultLimits suit a front of 10,000 devices.
func DefaultLimits() Limits {
	return Limits{
		Sessions:            20_000,
		Unproven:            4_096,
		Handshakes:          1_024,
		HandshakesPerSecond: 10,
		HandshakeBurst:      64,
		DatagramsPerSecond:  2_000,
		DatagramBurst:       4_000,
		Sources:             50_000,
		SessionsPerIdentity: 2,
		HandshakeTimeout:    10 * time.Second,
		Idle:                26 * time.Hour,
	}
}

// sources limits how fast each source address begins handshakes.
type sources struct {
	mutex  sync.Mutex
	limits Limits
	known  map[string]*rate.Limiter
}

func newSources(limits Limits) *sources {
	return &sources{limits: limits, known: map[string]*rate.Limiter{}}
}

// allow tells whether a source may begin a handshake now.
func (s *sources) allow(address net.Addr, now time.Time) bool {
	host, _, err := net.SplitHostPort(address.String())
	if err != nil {
		return false
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	limiter, ok := s.known[host]
	if !ok {
		if len(s.known) >= s.limits.Sources {
			s.forgetIdle(now)
		}
		if len(s.known) >= s.limits.Sources {
			return false
		}
		limiter = rate.NewLimiter(s.limits.HandshakesPerSecond, s.limits.HandshakeBurst)
		s.known[host] = limiter
	}
	return limiter.AllowN(now, 1)
}

// forgetIdle drops the sources that have all of their burst again: nothing is lost by forgetting those.
func (s *sources) forgetIdle(now time.Time) {
	for host, limiter := range s.known {
		if limiter.TokensAt(now) >= float64(s.limits.HandshakeBurst) {
			delete(s.known, host)
		}
	}
}

// place is a handshake's among those under way.
type place struct {
	front *Front
	mutex sync.Mutex
	taken bool
	over  bool
}

// take tells whether a peer that has proven its address goes on, and counts it where it does not.
func (p *place) take(peer net.Addr) bool {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.taken || p.over {
		return p.taken
	}
	p.taken = p.front.sources.allow(peer, time.Now()) && p.front.slots.TryAcquire(1)
	p.over = !p.taken
	if p.over {
		p.front.Counters.HandshakesLimited.Add(1)
	}
	return p.taken
}

// leave gives the place back and tells whether there was one.
func (p *place) leave() bool {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.over = true
	if p.taken {
		p.front.slots.Release(1)
	}
	return p.taken
}
