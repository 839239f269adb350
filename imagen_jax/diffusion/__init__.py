"""Diffusion mathematics: pure functions of arrays, no network and no configuration framework.

The forward process is variance preserving in continuous time (paper section 2.2, eq. 1, and appendix A):

    z_t = alpha_t x0 + sigma_t eps,   alpha² = sigmoid(log_snr),   sigma² = sigmoid(-log_snr),   t in [0, 1]
"""
