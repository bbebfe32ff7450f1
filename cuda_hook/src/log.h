/* Messages to stderr, silent unless SAIR_HOOK_LOG asks for them; never to stdout, which belongs to the host program. */
#ifndef SAIR_LOG_H
#define SAIR_LOG_H

enum sair_log_level { SAIR_LOG_OFF = 0, SAIR_LOG_ERROR = 1, SAIR_LOG_INFO = 2 };

void sair_log_set(enum sair_log_level level);
__attribute__((format(printf, 2, 3))) void sair_log(enum sair_log_level level, const char *format, ...);

#endif
